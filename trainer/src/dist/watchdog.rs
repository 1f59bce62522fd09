//! A watchdog over collectives: where a rank does not come to one in time, the job ends, and says which rank the others
//! waited for. What ranks are doing is told to rank 0 over UDP, apart from MPI, which may be what hangs.

use super::{Traffic, World, abort, broadcast_text};
use crate::config;
use crate::host;
use crate::sys::Event;
use crate::sys::error::{Exit, Result};
use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Time between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
/// A rank that has not been heard of for so long is not merely slow to send.
const SILENCE: Duration = Duration::from_secs(3);

/// What this rank is doing.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The step being taken, and how many have been begun.
    step: AtomicU64,
    steps: AtomicU64,
    doing: Mutex<Doing>,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Doing {
    traffic: Traffic,
    /// The collective that this rank is in, and since when.
    current: Option<(&'static str, Instant)>,
    /// Those that the device was asked for and may still be busy with, oldest first.
    on_device: VecDeque<(&'static str, Instant, Event)>,
}

impl Doing {
    /// The oldest collective that is not over, and since when it is under way.
    fn oldest(&mut self) -> Option<(&'static str, Instant)> {
        while self.on_device.front().is_some_and(|(.., done)| done.is_complete()) {
            self.on_device.pop_front();
        }
        self.on_device.front().map(|&(what, since, _)| (what, since)).or(self.current)
    }
}

impl Progress {
    pub(super) fn at_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn enter(&self, what: &'static str, bytes: u64) {
        let mut doing = self.doing.lock().expect("no panic under the lock");
        doing.traffic.calls += 1;
        doing.traffic.bytes += bytes;
        doing.current = Some((what, Instant::now()));
    }

    /// The host is through with the collective; the device may have to come to `done` yet.
    pub(super) fn leave(&self, done: Option<Event>) {
        let mut doing = self.doing.lock().expect("no panic under the lock");
        if let Some((what, since)) = doing.current.take() {
            doing.traffic.busy += since.elapsed();
            doing.on_device.extend(done.map(|done| (what, since, done)));
            doing.oldest();
        }
    }

    pub(super) fn waited(&self, time: Duration) {
        self.doing.lock().expect("no panic under the lock").traffic.waited += time;
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.doing.lock().expect("no panic under the lock").traffic
    }

    fn oldest(&self) -> Option<(&'static str, Instant)> {
        self.doing.lock().expect("no panic under the lock").oldest()
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// What rank 0 knows of a rank.
#[derive(Clone, Copy, Debug)]
struct Seen {
    entered: u64,
    at: Option<Instant>,
}

/// Where rank 0, which told its host's name and its port, hears signs of life.
fn address(told: &str, host: &str) -> Option<SocketAddr> {
    let (name, port) = told.split_once(' ')?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    if name == host {
        return Some(([127, 0, 0, 1], port).into());
    }
    (name, port).to_socket_addrs().ok()?.find(SocketAddr::is_ipv4)
}

/// The thread that watches.
pub(super) struct Watch {
    rank: usize,
    world: usize,
    first: Option<SocketAddr>,
    socket: Option<UdpSocket>,
    progress: Arc<Progress>,
    /// Seconds that a collective may take: until the first step is taken, and from then on.
    limits: (u64, u64),
}

impl Watch {
    /// All ranks: learns where rank 0 is.
    pub(super) fn new(world: &World, options: &config::Collective, progress: Arc<Progress>) -> Result<Self> {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).ok();
        let port = socket.as_ref().and_then(|socket| socket.local_addr().ok()).map_or(0, |at| at.port());
        let host = host::name();
        let told = broadcast_text(world, &format!("{host} {port}"))?;
        Ok(Self {
            rank: world.rank(),
            world: world.ranks(),
            first: address(&told, &host),
            socket,
            progress,
            limits: (options.first_timeout_s, options.timeout_s),
        })
    }

    /// Watches until the world ends.
    pub(super) fn run(self) {
        let mut seen = vec![Seen { entered: 0, at: None }; self.world];
        while !self.progress.over.load(Ordering::SeqCst) {
            let entered = self.progress.traffic().calls;
            if self.rank == 0 {
                seen[0] = Seen { entered, at: Some(Instant::now()) };
                self.hear(&mut seen);
            } else {
                self.tell(entered);
                std::thread::sleep(BEAT);
            }
            let first = self.progress.steps.load(Ordering::Relaxed) <= 1;
            let limit = Duration::from_secs(if first { self.limits.0 } else { self.limits.1 });
            // Rank 0, which knows more, speaks first.
            let limit = if self.rank == 0 { limit } else { limit + 4 * SILENCE };
            if let Some((name, since)) = self.progress.oldest().filter(|(_, since)| since.elapsed() > limit) {
                let (waited, step) = (since.elapsed().as_secs(), self.progress.step.load(Ordering::Relaxed));
                let missing = if self.rank == 0 { missing(&seen) } else { "rank 0 does not answer".into() };
                eprintln!(
                    "error: rank {} has waited {waited} s in {name} (step {step}, collective {entered}): {missing}; \
                     the job ends here, --resume goes on from the last checkpoint",
                    self.rank
                );
                abort(Exit::Hang as i32);
            }
        }
    }

    /// A sign of life to rank 0; one that is lost is followed by another.
    fn tell(&self, entered: u64) {
        if let (Some(socket), Some(first)) = (&self.socket, self.first) {
            let mut beat = (self.rank as u64).to_le_bytes().to_vec();
            beat.extend(entered.to_le_bytes());
            let _ = socket.send_to(&beat, first);
        }
    }

    /// Takes in the others' signs of life for a while.
    fn hear(&self, seen: &mut [Seen]) {
        let until = Instant::now() + BEAT;
        let Some(socket) = &self.socket else { return std::thread::sleep(BEAT) };
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let _ = socket.set_read_timeout(Some(left));
            let mut beat = [0; 16];
            let Ok((16, _)) = socket.recv_from(&mut beat) else { continue };
            let number = |at: usize| u64::from_le_bytes(beat[at..at + 8].try_into().expect("eight bytes"));
            if let Some(seen) = seen.get_mut(number(0) as usize) {
                *seen = Seen { entered: number(8), at: Some(Instant::now()) };
            }
        }
    }
}

/// Which ranks the others wait for.
fn missing(seen: &[Seen]) -> String {
    let furthest = seen.iter().map(|seen| seen.entered).max().unwrap_or(0);
    let of = |rank: usize, seen: &Seen| match seen.at.map(|at| at.elapsed()) {
        None => Some(format!("rank {rank} was never heard of")),
        Some(ago) if ago > SILENCE => Some(format!("rank {rank} was last heard of {} s ago", ago.as_secs())),
        Some(_) if seen.entered < furthest => {
            Some(format!("rank {rank} has not arrived (it is at collective {})", seen.entered))
        }
        Some(_) => None,
    };
    let missing: Vec<String> = seen.iter().enumerate().filter_map(|(rank, seen)| of(rank, seen)).collect();
    match missing.is_empty() {
        true => "all ranks are in it, so what is between them is at fault".into(),
        false => missing.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_are_named() {
        let now = Some(Instant::now());
        let late = Some(Instant::now() - 10 * SILENCE);
        let seen =
            [(7, now), (7, now), (6, now), (7, late), (0, None)].map(|(entered, at)| Seen { entered, at });
        let said = missing(&seen);
        assert_eq!(
            said,
            "rank 2 has not arrived (it is at collective 6), rank 3 was last heard of 30 s ago, rank 4 was never heard of"
        );
        assert!(missing(&seen[..2]).starts_with("all ranks are in it"));
    }

    #[test]
    fn rank_0_is_found_on_the_same_host_and_by_name() {
        assert_eq!(address("here 4000", "here"), Some(([127, 0, 0, 1], 4000).into()));
        assert_eq!(address("localhost 4000", "here"), Some(([127, 0, 0, 1], 4000).into()));
        assert_eq!(address("here 0", "here"), None);
    }
}
