//! A watchdog over collectives: if a rank does not reach one in time, the job ends with a message that names the rank. Ranks
//! send heartbeats to rank 0 over UDP, independently of MPI, which may be what hangs.

use super::abort;
use super::agreement::on_rank_zero;
use super::progress::Progress;
use super::world::World;
use crate::config;
use crate::host;
use crate::sys::error::{Exit, Result};
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// A rank without a heartbeat for so long is not merely slow to send one.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);

/// What rank 0 knows of a rank.
#[derive(Clone, Copy, Debug)]
struct PeerStatus {
    /// How many collectives it has entered.
    entered: u64,
    last_heartbeat: Option<Instant>,
}

/// The address at which rank 0, on the host `name`, receives heartbeats.
fn heartbeat_address(name: &str, port: u16, own_host: &str) -> Option<SocketAddr> {
    if port == 0 {
        return None;
    }
    if name == own_host {
        return Some(([127, 0, 0, 1], port).into());
    }
    (name, port).to_socket_addrs().ok()?.find(SocketAddr::is_ipv4)
}

/// All ranks: from now on, a rank that does not reach a collective within the timeouts of `options` ends the job.
pub fn start_watchdog(world: &mut World, options: &config::Collective) -> Result<()> {
    if world.ranks() == 1 {
        return Ok(());
    }
    let watchdog = Watchdog::new(world, options)?;
    world.add_thread("watchdog", move || watchdog.run())
}

/// The watchdog of one rank.
struct Watchdog {
    rank: usize,
    ranks: usize,
    /// Rank 0's address.
    address: Option<SocketAddr>,
    socket: Option<UdpSocket>,
    /// A random number of this run: packets without it are not heartbeats of its ranks.
    run: u64,
    progress: Arc<Progress>,
    /// The longest time for a collective until the first step has been taken.
    first_timeout: Duration,
    /// The longest time for one after that.
    timeout: Duration,
}

impl Watchdog {
    /// All ranks: learns rank 0's address.
    fn new(world: &World, options: &config::Collective) -> Result<Self> {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).ok();
        let port = socket.as_ref().and_then(|socket| socket.local_addr().ok()).map_or(0, |at| at.port());
        let host = host::name();
        let (name, port, run) =
            on_rank_zero(world, || Ok((host.clone(), port, RandomState::new().hash_one(port))))?;
        Ok(Self {
            rank: world.rank(),
            ranks: world.ranks(),
            address: heartbeat_address(&name, port, &host),
            socket,
            run,
            progress: world.queue().progress().clone(),
            first_timeout: Duration::from_secs(options.first_timeout_s),
            timeout: Duration::from_secs(options.timeout_s),
        })
    }

    /// Watches until the world ends.
    fn run(self) {
        let mut peers = vec![PeerStatus { entered: 0, last_heartbeat: None }; self.ranks];
        while !self.progress.has_ended() {
            let entered = self.progress.traffic().calls;
            if self.rank == 0 {
                peers[0] = PeerStatus { entered, last_heartbeat: Some(Instant::now()) };
                self.receive_heartbeats(&mut peers);
            } else {
                self.send_heartbeat(entered);
                std::thread::sleep(HEARTBEAT_INTERVAL);
            }
            let oldest = self.progress.oldest();
            if let Some((what, start)) = oldest.filter(|(_, start)| start.elapsed() > self.limit()) {
                let waited = start.elapsed().as_secs();
                let step = self.progress.step();
                let cause = if self.rank == 0 { missing(&peers) } else { "rank 0 does not answer".into() };
                crate::eprint_line!(
                    "error: rank {} has waited {waited} s in {what} (step {step}, collective {entered}): {cause}; \
                     the job ends; --resume auto continues from the last checkpoint",
                    self.rank
                );
                abort(Exit::Hang as i32);
            }
        }
    }

    /// The longest time that a collective may take now.
    fn limit(&self) -> Duration {
        let first = self.progress.steps_begun() <= 1;
        let limit = if first { self.first_timeout } else { self.timeout };
        // Rank 0 knows more, so it reports first.
        if self.rank == 0 { limit } else { limit + 4 * HEARTBEAT_TIMEOUT }
    }

    /// Sends rank 0 how many collectives this rank has entered; a lost message is followed by another.
    fn send_heartbeat(&self, entered: u64) {
        if let (Some(socket), Some(address)) = (&self.socket, self.address) {
            let numbers = [self.run, self.rank as u64, entered];
            let _ = socket.send_to(&numbers.map(u64::to_le_bytes).concat(), address);
        }
    }

    /// Receives the other ranks' heartbeats for one interval.
    fn receive_heartbeats(&self, peers: &mut [PeerStatus]) {
        let end = Instant::now() + HEARTBEAT_INTERVAL;
        let Some(socket) = &self.socket else { return std::thread::sleep(HEARTBEAT_INTERVAL) };
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let _ = socket.set_read_timeout(Some(left));
            let mut message = [0; 24];
            let Ok((24, _)) = socket.recv_from(&mut message) else { continue };
            let number = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("eight bytes"));
            if let Some(peer) = peers.get_mut(number(8) as usize).filter(|_| number(0) == self.run) {
                *peer = PeerStatus { entered: number(16), last_heartbeat: Some(Instant::now()) };
            }
        }
    }
}

/// Which ranks the others wait for.
fn missing(peers: &[PeerStatus]) -> String {
    let furthest = peers.iter().map(|peer| peer.entered).max().unwrap_or(0);
    let describe = |(rank, peer): (usize, &PeerStatus)| match peer.last_heartbeat.map(|at| at.elapsed()) {
        None => Some(format!("rank {rank} has sent no heartbeat")),
        Some(age) if age > HEARTBEAT_TIMEOUT => {
            Some(format!("rank {rank} sent its last heartbeat {} s ago", age.as_secs()))
        }
        Some(_) if peer.entered < furthest => {
            Some(format!("rank {rank} has not arrived (it is at collective {})", peer.entered))
        }
        Some(_) => None,
    };
    let missing: Vec<String> = peers.iter().enumerate().filter_map(describe).collect();
    if missing.is_empty() {
        "all ranks entered the collective; suspect the network".into()
    } else {
        missing.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ranks_are_named_with_their_last_heartbeat() {
        let now = Some(Instant::now());
        let late = Some(Instant::now() - 10 * HEARTBEAT_TIMEOUT);
        let peers = [(7, now), (7, now), (6, now), (7, late), (0, None)]
            .map(|(entered, last_heartbeat)| PeerStatus { entered, last_heartbeat });
        assert_eq!(
            missing(&peers),
            "rank 2 has not arrived (it is at collective 6), rank 3 sent its last heartbeat 30 s ago, \
             rank 4 has sent no heartbeat"
        );
        assert!(missing(&peers[..2]).starts_with("all ranks entered the collective"));
    }

    #[test]
    fn packets_of_other_runs_are_no_heartbeats() {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let address = socket.local_addr().ok();
        let watchdog = |rank, run, socket| Watchdog {
            rank,
            ranks: 3,
            address,
            socket: Some(socket),
            run,
            progress: Arc::default(),
            first_timeout: Duration::ZERO,
            timeout: Duration::ZERO,
        };
        let sender = || UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        watchdog(1, 7, sender()).send_heartbeat(5);
        watchdog(2, 8, sender()).send_heartbeat(5);
        sender().send_to(&[0; 16], address.unwrap()).unwrap();
        let mut peers = [PeerStatus { entered: 0, last_heartbeat: None }; 3];
        watchdog(0, 7, socket).receive_heartbeats(&mut peers);
        assert_eq!(
            peers.map(|peer| (peer.entered, peer.last_heartbeat.is_some())),
            [(0, false), (5, true), (0, false)]
        );
    }

    #[test]
    fn rank_zero_is_found_on_the_same_host_and_by_name() {
        assert_eq!(heartbeat_address("here", 4000, "here"), Some(([127, 0, 0, 1], 4000).into()));
        assert_eq!(heartbeat_address("localhost", 4000, "here"), Some(([127, 0, 0, 1], 4000).into()));
        assert_eq!(heartbeat_address("here", 0, "here"), None);
    }
}
