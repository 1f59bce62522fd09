//! The phases of a training step, timed for a profile. A [`Range`] covers a phase; it costs one read of a flag while nothing is
//! recorded. A CPU is timed by the clock, a GPU by events on the thread's current stream, without waiting for it. libtorch's
//! own trace shows the same ranges by name. The paths for GPUs are untested: no machine with a GPU has run them yet.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use super::memory;
use super::torch::{Event, panic_on_error};
use std::ffi::{CString, c_char, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;
use tch::Device;

unsafe extern "C" {
    fn codinet_trace_start(cuda: bool) -> bool;
    fn codinet_trace_save(path: *const c_char) -> bool;
    fn codinet_range_enter(name: *const c_char) -> *mut c_void;
    fn codinet_range_leave(range: *mut c_void);
}

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The whole step.
    Step,
    /// Waiting for the loader's next batch.
    Loader,
    /// The network and the loss.
    Forward,
    Backward,
    /// Computation waiting for a collective.
    Wait,
    /// A collective, on the thread and stream that run it.
    Collective,
    Optimizer,
}

impl Phase {
    /// Its name in a trace.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Loader => "loader wait",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Wait => "collective wait",
            Self::Collective => "collective",
            Self::Optimizer => "optimizer",
        }
    }

    /// Whether its peak of memory is recorded: of the phases that contain no other.
    fn records_memory(self) -> bool {
        matches!(self, Self::Forward | Self::Backward | Self::Optimizer)
    }
}

/// A range that has ended; times are milliseconds since [`start_recording`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub phase: Phase,
    pub start: f64,
    pub end: f64,
}

/// The result of [`stop_recording`].
#[derive(Debug, Default)]
pub struct Recording {
    /// In the order in which ranges ended.
    pub spans: Vec<Span>,
    /// Peaks of memory of forward, backward and optimizer, in bytes: on a GPU within the phase, on a CPU up to its end.
    pub peaks: Vec<(Phase, u64)>,
}

static ON: AtomicBool = AtomicBool::new(false);
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

struct Recorder {
    device: Device,
    base: Timestamp,
    ranges: Vec<(Phase, Timestamp, Timestamp)>,
    /// `None` if memory is not recorded.
    peaks: Option<Vec<(Phase, u64)>>,
}

/// A phase in progress; it ends when this is dropped.
pub struct Range {
    phase: Phase,
    device: Device,
    start: Option<Timestamp>,
    record_function: *mut c_void,
    /// Not `Send`: libtorch ends a range on the thread that began it.
    _not_send: PhantomData<*const ()>,
}

/// Begins `phase`, which ends when the result is dropped; `None` while nothing is recorded.
#[must_use = "a range ends when it is dropped"]
pub fn range(phase: Phase) -> Option<Range> {
    ON.load(Ordering::Relaxed).then(|| Range::enter(phase)).flatten()
}

/// Records ranges from here on; with `memory` also peaks, which slows a step down.
pub fn start_recording(device: Device, memory: bool) {
    let base = Timestamp::now(device);
    let peaks = memory.then(Vec::new);
    *recorder() = Some(Recorder { device, base, ranges: Vec::new(), peaks });
    ON.store(true, Ordering::Relaxed);
}

/// Ends [`start_recording`] and returns what it recorded; on a GPU the host waits for the last range.
pub fn stop_recording() -> Recording {
    ON.store(false, Ordering::Relaxed);
    let Some(Recorder { base, ranges, peaks, .. }) = recorder().take() else { return Recording::default() };
    let spans = ranges.iter().map(|(phase, start, end)| Span {
        phase: *phase,
        start: start.milliseconds_since(&base),
        end: end.milliseconds_since(&base),
    });
    Recording { spans: spans.collect(), peaks: peaks.unwrap_or_default() }
}

/// Starts libtorch's own profiler: every operation on every thread, and on a GPU every kernel.
pub fn start_trace(device: Device) {
    // SAFETY: a flag; the result is checked.
    let started = unsafe { codinet_trace_start(device.is_cuda()) };
    panic_on_error(started, "libtorch's profiler");
}

/// Stops libtorch's profiler and writes its events as a Chrome trace.
pub fn save_trace(path: &Path) {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path has no NUL");
    // SAFETY: a NUL-terminated string, alive during the call.
    let saved = unsafe { codinet_trace_save(path.as_ptr()) };
    panic_on_error(saved, "saving a trace");
}

fn recorder() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().expect("a panic ends the job")
}

impl Range {
    fn enter(phase: Phase) -> Option<Self> {
        let (device, memory) =
            recorder().as_ref().map(|recorder| (recorder.device, recorder.peaks.is_some()))?;
        let name = CString::new(phase.name()).expect("no NUL");
        // SAFETY: a NUL-terminated string, which is copied.
        let record_function = unsafe { codinet_range_enter(name.as_ptr()) };
        panic_on_error(!record_function.is_null(), "a range");
        if memory && phase.records_memory() {
            memory::reset_peak_memory(device);
        }
        let start = Some(Timestamp::now(device));
        Some(Self { phase, device, start, record_function, _not_send: PhantomData })
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: made by codinet_range_enter on this thread, freed once.
        unsafe { codinet_range_leave(self.record_function) };
        let end = Timestamp::now(self.device);
        if let (Some(recorder), Some(start)) = (recorder().as_mut(), self.start.take()) {
            recorder.ranges.push((self.phase, start, end));
            if let Some(peaks) = recorder.peaks.as_mut().filter(|_| self.phase.records_memory()) {
                peaks.push((self.phase, memory::peak_memory(self.device).tensors));
            }
        }
    }
}

/// A moment by the clock, or on a GPU in the thread's current stream.
enum Timestamp {
    Host(Instant),
    Device(Event),
}

impl Timestamp {
    fn now(device: Device) -> Self {
        Event::record_timed(device).map_or_else(|| Self::Host(Instant::now()), Self::Device)
    }

    /// `earlier` is of the same kind.
    fn milliseconds_since(&self, earlier: &Self) -> f64 {
        match (self, earlier) {
            (Self::Host(later), Self::Host(earlier)) => 1e3 * later.duration_since(*earlier).as_secs_f64(),
            (Self::Device(later), Self::Device(earlier)) => later.milliseconds_since(earlier),
            _ => unreachable!("a profile has one device"),
        }
    }
}
