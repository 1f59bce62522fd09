//! CUDA's streams and events, and the device of a thread. On a CPU work is done when a call returns, so there are none.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use super::panic_on_error;
use std::ffi::{c_int, c_void};
use tch::Device;

unsafe extern "C" {
    fn codinet_event_record(device: c_int, timed: bool) -> *mut c_void;
    fn codinet_event_block(event: *mut c_void) -> bool;
    fn codinet_event_query(event: *mut c_void) -> c_int;
    fn codinet_event_synchronize(event: *mut c_void) -> bool;
    fn codinet_event_elapsed(earlier: *mut c_void, later: *mut c_void, milliseconds: *mut f64) -> bool;
    fn codinet_event_free(event: *mut c_void);
    fn codinet_set_device(device: c_int) -> bool;
    fn codinet_set_side_stream(device: c_int, purpose: c_int) -> bool;
    fn codinet_current_stream_handle(device: c_int, handle: *mut *mut c_void) -> bool;
}

/// An event recorded on a CUDA stream.
#[derive(Debug)]
pub struct Event(*mut c_void);

// SAFETY: any thread may wait for a CUDA event; methods that change it take `&mut` or consume it.
unsafe impl Send for Event {}

impl Event {
    /// Records an event on this thread's current stream; `None` on a CPU.
    pub fn record(device: Device) -> Option<Self> {
        Self::new(device, false)
    }

    /// [`Event::record`] with a time stamp, for [`Event::milliseconds_since`].
    pub fn record_timed(device: Device) -> Option<Self> {
        Self::new(device, true)
    }

    fn new(device: Device, timed: bool) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        // SAFETY: a number and a flag; the result is checked.
        let event = unsafe { codinet_event_record(index as c_int, timed) };
        panic_on_error(!event.is_null(), "recording an event");
        Some(Self(event))
    }

    /// Makes later work of this thread's current stream wait for the event; the host does not wait.
    pub fn block(&self) {
        // SAFETY: the event is alive.
        let blocked = unsafe { codinet_event_block(self.0) };
        panic_on_error(blocked, "making a stream wait for an event");
    }

    /// Whether the stream has reached the event.
    pub fn is_complete(&self) -> bool {
        // SAFETY: the event is alive.
        let answer = unsafe { codinet_event_query(self.0) };
        panic_on_error(answer != 0, "querying an event");
        answer == 1
    }

    /// Makes the host wait for the event.
    pub fn synchronize(&self) {
        // SAFETY: the event is alive.
        let synchronized = unsafe { codinet_event_synchronize(self.0) };
        panic_on_error(synchronized, "waiting for an event");
    }

    /// Time from `earlier` to this event, in milliseconds. Both are timed; the host waits for them.
    pub fn milliseconds_since(&self, earlier: &Self) -> f64 {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and the number outlives the call.
        let done = unsafe { codinet_event_elapsed(earlier.0, self.0, &raw mut milliseconds) };
        panic_on_error(done, "the time between two events");
        milliseconds
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by codinet_event_record, freed once.
        unsafe { codinet_event_free(self.0) };
    }
}

/// Makes `device` this thread's current device. Without it the thread's first CUDA call would create a context on GPU 0.
pub fn set_device(device: Device) {
    if let Device::Cuda(index) = device {
        // SAFETY: a number; the result is checked.
        let set = unsafe { codinet_set_device(index as c_int) };
        panic_on_error(set, "setting a thread's device");
    }
}

/// What a stream next to the default one is for.
#[derive(Clone, Copy, Debug)]
pub enum SideStream {
    /// Collectives.
    Collectives,
    /// The next batch.
    Uploads,
    /// What a checkpoint saves.
    Checkpoints,
}

/// Makes the high-priority stream of `purpose` this thread's current one on `device`. It is the same for all threads: libtorch's
/// allocator reuses memory in one stream only, and its pool has 32 streams, after which two purposes would share one.
pub fn set_side_stream(device: Device, purpose: SideStream) {
    if let Device::Cuda(index) = device {
        // SAFETY: two numbers; the result is checked.
        let set = unsafe { codinet_set_side_stream(index as c_int, purpose as c_int) };
        panic_on_error(set, "setting a thread's stream");
    }
}

/// The `cudaStream_t` of this thread's current stream; null for the default stream.
pub fn current_stream_handle(device: usize) -> *mut c_void {
    let mut handle = std::ptr::null_mut();
    // SAFETY: a number, and room for the handle that is written.
    let found = unsafe { codinet_current_stream_handle(device as c_int, &mut handle) };
    panic_on_error(found, "the current stream");
    handle
}
