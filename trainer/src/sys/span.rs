//! The parts of a training step, as a profile sees them: each is a range, which costs one look at a flag where nobody
//! profiles. On a CPU a range is timed by the clock, on a GPU by events on the stream that the thread uses, without
//! waiting for it. In libtorch's own trace ranges stand by their names. What needs a GPU is untested: none has run it yet.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use crate::sys::memory;
use crate::sys::native::{Event, expect};
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

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All of it.
    Step,
    /// Waiting for the loader's next batch.
    Loader,
    /// The network and the objective.
    Forward,
    /// Gradients.
    Backward,
    /// Waiting for a collective, whatever else is going on.
    Wait,
    /// A collective, on the thread and the stream that make them.
    Collective,
    /// The update.
    Optimizer,
}

impl Phase {
    /// What it is called in a trace.
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
}

/// A range that is over, in milliseconds since [`start`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Which part.
    pub phase: Phase,
    /// Its start.
    pub start: f64,
    /// Its end.
    pub end: f64,
}

/// What has been recorded.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Ranges, in the order in which they ended.
    pub spans: Vec<Span>,
    /// The most memory that forward, backward and optimizer needed, in bytes: on a GPU within the phase, on a CPU up to
    /// its end.
    pub peaks: Vec<(Phase, u64)>,
}

static ON: AtomicBool = AtomicBool::new(false);
static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

struct Recorder {
    device: Device,
    base: Moment,
    ranges: Vec<(Phase, Moment, Moment)>,
    /// `None` where memory is not looked at.
    peaks: Option<Vec<(Phase, u64)>>,
}

/// A range in progress.
pub struct Range {
    phase: Phase,
    device: Device,
    start: Option<Moment>,
    named: *mut c_void,
    /// Ends on the thread that it began on.
    _here: PhantomData<*const ()>,
}

/// From here to the drop of what is returned: `phase`. Nothing, where nobody profiles.
#[must_use = "a range ends when it is dropped"]
pub fn range(phase: Phase) -> Option<Range> {
    ON.load(Ordering::Relaxed).then(|| Range::enter(phase)).flatten()
}

/// Ranges are recorded from here on, and the peaks of memory with them where `memory` is set, which slows a step down.
pub fn start(device: Device, memory: bool) {
    let (base, ranges) = (Moment::now(device), Vec::new());
    *recorder() = Some(Recorder { device, base, ranges, peaks: memory.then(Vec::new) });
    ON.store(true, Ordering::Relaxed);
}

/// No longer; on a GPU the host waits for the last of them.
pub fn stop() -> Recorded {
    ON.store(false, Ordering::Relaxed);
    let Some(Recorder { base, ranges, peaks, .. }) = recorder().take() else { return Recorded::default() };
    let spans = ranges.iter().map(|(phase, start, end)| Span {
        phase: *phase,
        start: start.since(&base),
        end: end.since(&base),
    });
    Recorded { spans: spans.collect(), peaks: peaks.unwrap_or_default() }
}

/// libtorch's own profiler records from here on: every operation on every thread, and on a GPU every kernel.
pub fn start_trace(device: Device) {
    // SAFETY: no arguments but a flag; the result is checked.
    expect(unsafe { codinet_trace_start(device.is_cuda()) }, "libtorch's profiler");
}

/// Writes what it has recorded as a Chrome trace.
pub fn save_trace(path: &Path) {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path has no NUL");
    // SAFETY: a NUL-terminated string, alive through the call.
    expect(unsafe { codinet_trace_save(path.as_ptr()) }, "saving a trace");
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
        let named = unsafe { codinet_range_enter(name.as_ptr()) };
        expect(!named.is_null(), "a range");
        if memory && measured(phase) {
            memory::forget_peak(device);
        }
        Some(Self { phase, device, start: Some(Moment::now(device)), named, _here: PhantomData })
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: made by codinet_range_enter on this thread, given back once.
        unsafe { codinet_range_leave(self.named) };
        let end = Moment::now(self.device);
        if let (Some(recorder), Some(start)) = (recorder().as_mut(), self.start.take()) {
            recorder.ranges.push((self.phase, start, end));
            if let Some(peaks) = recorder.peaks.as_mut().filter(|_| measured(self.phase)) {
                peaks.push((self.phase, memory::peak(self.device).tensors));
            }
        }
    }
}

/// Whether memory is looked at by this phase: those that no other stands in.
fn measured(phase: Phase) -> bool {
    matches!(phase, Phase::Forward | Phase::Backward | Phase::Optimizer)
}

/// A moment: of the clock, or on a GPU in the stream that this thread uses.
enum Moment {
    Host(Instant),
    Device(Event),
}

impl Moment {
    fn now(device: Device) -> Self {
        Event::record_timed(device).map_or_else(|| Self::Host(Instant::now()), Self::Device)
    }

    /// Milliseconds since an earlier one of the same kind.
    fn since(&self, earlier: &Self) -> f64 {
        match (self, earlier) {
            (Self::Host(later), Self::Host(earlier)) => 1e3 * later.duration_since(*earlier).as_secs_f64(),
            (Self::Device(later), Self::Device(earlier)) => later.since(earlier),
            _ => unreachable!("a profile has one device"),
        }
    }
}
