//! A watchdog: if a rank does not reach a collective in time, or gets no data, the job ends with a message that names the rank.
//! Ranks send heartbeats to rank 0 over UDP, independently of MPI, which may be what hangs. Rank 0 answers each with one of its own.

use super::abort;
use super::agreement::on_rank_zero;
use super::progress::Progress;
use super::world::World;
use crate::config;
use crate::host;
use crate::sys::error::{Exit, Result};
use codinet_dataloader::Stall;
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);
/// A rank without a heartbeat for so long is not merely slow to send one.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest time that NCCL gets to end a communicator after an error.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest heartbeat: three numbers and a text. It fits into a packet of any network.
const HEARTBEAT_BYTES: usize = 1200;

/// What rank 0 knows of a rank, and another rank of rank 0.
#[derive(Clone, Debug, Default)]
struct PeerStatus {
    /// How many collectives it has entered.
    entered: u64,
    /// Its wait for data, as [`describe_stall`] has it; empty if it does not wait.
    stall: String,
    last_heartbeat: Option<Instant>,
}

impl PeerStatus {
    /// Its last heartbeat is too old.
    fn is_silent(&self) -> bool {
        self.last_heartbeat.is_some_and(|at| at.elapsed() > HEARTBEAT_TIMEOUT)
    }
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

/// All ranks: from now on, a rank that does not reach a collective within the timeouts of `options`, or waits that long for a
/// sample of its loader, ends the job.
pub fn start_watchdog(world: &mut World, options: &config::Collective) -> Result<()> {
    let watchdog = Watchdog::new(world, options)?;
    world.add_thread("watchdog", move || watchdog.run())
}

/// The watchdog of one rank.
struct Watchdog {
    rank: usize,
    ranks: usize,
    host: String,
    /// Rank 0's address.
    address: Option<SocketAddr>,
    /// None in a world of one.
    socket: Option<UdpSocket>,
    /// A random number of this run: packets without it are not heartbeats of its ranks.
    run: u64,
    progress: Arc<Progress>,
    /// The longest wait until the first step has been taken.
    first_timeout: Duration,
    /// The longest wait after that.
    timeout: Duration,
}

impl Watchdog {
    /// All ranks: learns rank 0's address.
    fn new(world: &World, options: &config::Collective) -> Result<Self> {
        let is_only = world.ranks() == 1;
        let socket = if is_only { None } else { UdpSocket::bind(("0.0.0.0", 0)).ok() };
        let port = socket.as_ref().and_then(|socket| socket.local_addr().ok()).map_or(0, |at| at.port());
        let host = host::name();
        let (name, port, run) =
            on_rank_zero(world, || Ok((host.clone(), port, RandomState::new().hash_one(port))))?;
        Ok(Self {
            rank: world.rank(),
            ranks: world.ranks(),
            address: heartbeat_address(&name, port, &host),
            host,
            socket,
            run,
            progress: world.queue().progress().clone(),
            first_timeout: Duration::from_secs(options.first_timeout_s),
            timeout: Duration::from_secs(options.timeout_s),
        })
    }

    /// Watches until the world ends.
    fn run(self) {
        let mut peers = vec![PeerStatus::default(); self.ranks];
        // A wait ends the job when it is seen twice: a process that was stopped for long, by Ctrl-Z, may go on.
        let mut late_collective = None;
        let mut late_stall = None;
        while !self.progress.has_ended() {
            self.exchange_heartbeats(&mut peers);
            self.end_after_network_error();
            let limit = self.limit(&peers[0]);
            let collective = self.progress.oldest().filter(|(_, start)| start.elapsed() > limit);
            if let Some((what, start)) = collective.filter(|(_, start)| late_collective == Some(*start)) {
                let waited = start.elapsed().as_secs();
                let entered = self.progress.traffic().calls;
                let step = self.progress.step();
                let cause = self.describe_missing(&peers);
                self.end_job(&format!(
                    "has waited {waited} s in {what} (step {step}, collective {entered}): {cause}"
                ));
            }
            late_collective = collective.map(|(_, start)| start);
            let stall = self.progress.stall().filter(|stall| stall.idle_since.elapsed() > limit);
            if let Some(stall) = stall.as_ref().filter(|stall| late_stall == Some(stall.idle_since)) {
                let step = self.progress.step();
                let others = describe_others(&peers);
                self.end_job(&format!(
                    "{} after step {step}{others}; check the file system or store",
                    describe_stall(&self.host, stall)
                ));
            }
            late_stall = stall.map(|stall| stall.idle_since);
        }
    }

    /// Whom this rank waits for, as far as it knows.
    fn describe_missing(&self, peers: &[PeerStatus]) -> String {
        match &peers[0] {
            _ if self.rank == 0 => missing(peers),
            rank_zero if rank_zero.is_silent() => missing(&peers[..1]),
            _ => "rank 0 does not end the job".into(),
        }
    }

    /// Ends the job if NCCL's own threads have given up a collective: without this it would hang until the timeout. Between
    /// collectives an error has no victim yet, and at the job's end it may only be that another rank has left first.
    fn end_after_network_error(&self) {
        let Some(communicator) = self.progress.communicator() else { return };
        let Some((what, _)) = self.progress.oldest() else { return };
        let Some(error) = communicator.async_error() else { return };
        self.report_end(&format!(
            "on {}: NCCL reports in {what} (step {}): {error}; suspect the network or another rank's GPU; NCCL_DEBUG=INFO \
             shows more",
            self.host,
            self.progress.step()
        ));
        // The abort itself waits for NCCL's threads, perhaps for ever.
        let communicator = communicator.clone();
        let (done_tx, done_rx) = sync_channel(1);
        std::thread::spawn(move || {
            communicator.abort();
            let _ = done_tx.send(());
        });
        let _ = done_rx.recv_timeout(ABORT_TIMEOUT);
        abort(Exit::Communication as i32);
    }

    fn end_job(&self, what: &str) -> ! {
        self.report_end(what);
        abort(Exit::Hang as i32)
    }

    fn report_end(&self, what: &str) {
        crate::eprint_line!(
            "error: rank {} {what}; the job ends; --resume auto continues from the last checkpoint",
            self.rank
        );
    }

    /// The longest time that a wait may take now.
    fn limit(&self, rank_zero: &PeerStatus) -> Duration {
        let first = self.progress.steps_begun() <= 1;
        let limit = if first { self.first_timeout } else { self.timeout };
        // Rank 0 knows more, so while it lives it reports first.
        if self.rank == 0 || rank_zero.is_silent() { limit } else { limit + 4 * HEARTBEAT_TIMEOUT }
    }

    /// For one interval, exchanges heartbeats with rank 0; rank 0 does so with all others.
    fn exchange_heartbeats(&self, peers: &mut [PeerStatus]) {
        peers[self.rank] = PeerStatus {
            entered: self.progress.traffic().calls,
            stall: self.progress.stall().map_or(String::new(), |stall| describe_stall(&self.host, &stall)),
            last_heartbeat: Some(Instant::now()),
        };
        let Some(socket) = &self.socket else { return self.progress.sleep(HEARTBEAT_INTERVAL) };
        if let Some(rank_zero) = self.address.filter(|_| self.rank > 0) {
            self.send_heartbeat(socket, rank_zero, &peers[self.rank]);
        }
        self.receive_heartbeats(socket, peers);
    }

    /// Sends what this rank does; a lost message is followed by another.
    fn send_heartbeat(&self, socket: &UdpSocket, to: SocketAddr, own: &PeerStatus) {
        let numbers = [self.run, self.rank as u64, own.entered];
        let mut message = numbers.map(u64::to_le_bytes).concat();
        message.extend(own.stall.bytes().take(HEARTBEAT_BYTES - message.len()));
        let _ = socket.send_to(&message, to);
    }

    /// Receives heartbeats for one interval; rank 0 answers them.
    fn receive_heartbeats(&self, socket: &UdpSocket, peers: &mut [PeerStatus]) {
        let end = Instant::now() + HEARTBEAT_INTERVAL;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let _ = socket.set_read_timeout(Some(left));
            let mut message = [0; HEARTBEAT_BYTES];
            let Ok((length @ 24.., sender)) = socket.recv_from(&mut message) else { continue };
            let number = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("eight bytes"));
            let rank = number(8) as usize;
            if number(0) != self.run || rank >= self.ranks || rank == self.rank {
                continue;
            }
            peers[rank] = PeerStatus {
                entered: number(16),
                stall: String::from_utf8_lossy(&message[24..length]).into_owned(),
                last_heartbeat: Some(Instant::now()),
            };
            if self.rank == 0 {
                self.send_heartbeat(socket, sender, &peers[0]);
            }
        }
    }
}

/// A wait for data on `host`.
fn describe_stall(host: &str, stall: &Stall) -> String {
    let waited = stall.start.elapsed().as_secs();
    let sample = stall.sample.as_ref().map(|sample| format!(" ({sample})")).unwrap_or_default();
    format!("on {host} has waited {waited} s for data{sample}")
}

/// For rank 0, which waits for data itself: how many other ranks do.
fn describe_others(peers: &[PeerStatus]) -> String {
    match peers.iter().skip(1).filter(|peer| !peer.stall.is_empty()).count() {
        0 => String::new(),
        count => format!("; {count} of {} other ranks wait for data, too", peers.len() - 1),
    }
}

/// Which ranks the others wait for.
fn missing(peers: &[PeerStatus]) -> String {
    let furthest = peers.iter().map(|peer| peer.entered).max().unwrap_or(0);
    let describe = |(rank, peer): (usize, &PeerStatus)| match peer.last_heartbeat.map(|at| at.elapsed()) {
        None => Some(format!("rank {rank} has sent no heartbeat")),
        Some(age) if peer.is_silent() => {
            Some(format!("rank {rank} sent its last heartbeat {} s ago", age.as_secs()))
        }
        Some(_) if peer.entered < furthest && peer.stall.is_empty() => {
            Some(format!("rank {rank} has not arrived (it is at collective {})", peer.entered))
        }
        Some(_) if peer.entered < furthest => Some(format!("rank {rank} {}", peer.stall)),
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
        let start = Instant::now() - Duration::from_secs(9);
        let stall = Stall { start, idle_since: Instant::now(), sample: Some("x/1.png".into()) };
        let stall = describe_stall("n2", &stall);
        let peers =
            [(7, now, ""), (7, now, ""), (6, now, ""), (7, late, ""), (0, None, ""), (6, now, &stall)].map(
                |(entered, last_heartbeat, stall)| PeerStatus {
                    entered,
                    last_heartbeat,
                    stall: stall.into(),
                },
            );
        assert_eq!(
            missing(&peers),
            "rank 2 has not arrived (it is at collective 6), rank 3 sent its last heartbeat 30 s ago, \
             rank 4 has sent no heartbeat, rank 5 on n2 has waited 9 s for data (x/1.png)"
        );
        assert!(missing(&peers[..2]).starts_with("all ranks entered the collective"));
        assert_eq!(describe_others(&peers), "; 1 of 5 other ranks wait for data, too");
        assert_eq!(describe_others(&peers[..2]), "");
    }

    #[test]
    fn heartbeats_carry_waits_for_data_are_answered_and_ignored_from_other_runs() {
        let bind = || UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let rank_zero = bind();
        let rank_one = bind();
        let address = rank_zero.local_addr().unwrap();
        let watchdog = |rank, run| Watchdog {
            rank,
            ranks: 4,
            host: "n1".into(),
            address: Some(address),
            socket: None,
            run,
            progress: Arc::default(),
            first_timeout: Duration::ZERO,
            timeout: Duration::ZERO,
        };
        let status = |entered, stall: String| PeerStatus { entered, stall, last_heartbeat: None };
        watchdog(1, 7).send_heartbeat(&rank_one, address, &status(5, String::new()));
        watchdog(2, 8).send_heartbeat(&bind(), address, &status(5, String::new()));
        watchdog(3, 7).send_heartbeat(&bind(), address, &status(4, "x".repeat(2000)));
        bind().send_to(&[0; 16], address).unwrap();
        let mut peers = vec![status(0, String::new()); 4];
        peers[0] = status(6, "waits".into());
        watchdog(0, 7).receive_heartbeats(&rank_zero, &mut peers);
        let received = peers.iter().skip(1).map(|peer| (peer.entered, peer.last_heartbeat.is_some()));
        assert_eq!(received.collect::<Vec<_>>(), [(5, true), (0, false), (4, true)]);
        assert_eq!((peers[1].stall.len(), peers[3].stall.len()), (0, HEARTBEAT_BYTES - 24));

        let mut peers = vec![status(0, String::new()); 4];
        watchdog(1, 7).receive_heartbeats(&rank_one, &mut peers);
        assert_eq!((peers[0].entered, peers[0].stall.as_str()), (6, "waits"));
        assert!(peers[0].last_heartbeat.is_some(), "rank 0 has answered");
    }

    #[test]
    fn ranks_wait_for_the_report_of_rank_zero_while_it_lives() {
        let timeout = Duration::from_secs(4);
        let watchdog = |rank| Watchdog {
            rank,
            ranks: 2,
            host: "n1".into(),
            address: None,
            socket: None,
            run: 7,
            progress: Arc::default(),
            first_timeout: timeout,
            timeout,
        };
        let status = |last_heartbeat| PeerStatus { entered: 0, stall: String::new(), last_heartbeat };
        let live = status(Some(Instant::now()));
        let silent = status(Some(Instant::now() - 2 * HEARTBEAT_TIMEOUT));
        assert_eq!(watchdog(0).limit(&live), timeout);
        assert_eq!(watchdog(1).limit(&live), timeout + 4 * HEARTBEAT_TIMEOUT);
        assert_eq!(watchdog(1).limit(&status(None)), timeout + 4 * HEARTBEAT_TIMEOUT);
        assert_eq!(watchdog(1).limit(&silent), timeout);
        assert_eq!(
            watchdog(1).describe_missing(&[silent, live.clone()]),
            "rank 0 sent its last heartbeat 6 s ago"
        );
        assert_eq!(watchdog(1).describe_missing(&[live.clone(), live]), "rank 0 does not end the job");
    }

    #[test]
    fn rank_zero_is_found_on_the_same_host_and_by_name() {
        assert_eq!(heartbeat_address("here", 4000, "here"), Some(([127, 0, 0, 1], 4000).into()));
        assert_eq!(heartbeat_address("localhost", 4000, "here"), Some(([127, 0, 0, 1], 4000).into()));
        assert_eq!(heartbeat_address("here", 0, "here"), None);
    }
}
