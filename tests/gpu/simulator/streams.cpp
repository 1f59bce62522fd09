// Streams and events: what waits for what.
#include <unistd.h>

#include <chrono>

#include "state.h"

namespace {

// A query answers "not ready" so often before the work is over, so that nothing relies on fast work.
constexpr int UNREADY_QUERIES = 3;

struct Streams {
    std::vector<Stream *> all;  // by id; never freed
    std::set<void *> alive;
    std::map<int, Stream *> defaults;  // of each device
    std::set<void *> events;
    Clock host;    // what the host knows to be over
    Clock waited;  // the part of it that the host knows since it waited, not by queries: a GPU may be slower than this one
};

Streams &streams() {
    static auto *const once = new Streams;
    return *once;
}

Stream *create_stream(int device, std::string name) {
    auto *stream = new Stream{streams().all.size(), device, std::move(name)};
    streams().all.push_back(stream);
    return stream;
}

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A call that waits for what the host knows to be over does not hold it up.
void count_wait(const char *call, bool holds_up) {
    const std::string what = std::string(holds_up ? "wait: " : "no wait: ") + call;
    count(what);
    log_call("%s", what.c_str());
}

[[noreturn]] void hang() {
    for (;;) sleep(1);
}

bool exists(cudaEvent_t event) { return streams().events.count(event) != 0; }

Event *as_event(cudaEvent_t event) { return reinterpret_cast<Event *>(event); }

// Which stream waits for which, such as "default<3".
std::string wait_name(const Stream *stream, const Event *event) { return stream->name + "<" + event->stream; }

}  // namespace

Stream *find_stream(cudaStream_t handle) {
    if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
        Stream *&stream = streams().defaults[current_device];
        if (!stream) stream = create_stream(current_device, "default");
        return stream;
    }
    if (!streams().alive.count(handle)) {
        complain("destroyed stream", "%p", static_cast<void *>(handle));
        return nullptr;
    }
    return reinterpret_cast<Stream *>(handle);
}

uint64_t enqueue(Stream *stream) {
    stream->clock.learn(streams().host);
    return stream->clock.advance(stream->id);
}

void host_learns(const Clock &clock) {
    streams().waited.learn(clock);
    streams().host.learn(clock);
    finish_copies();
}

bool host_knows(const Clock &clock) { return streams().host.covers(clock); }
bool host_knows(size_t stream, uint64_t time) { return streams().host.covers(stream, time); }

void host_learns_device(int device) {
    for (const Stream *stream : streams().all)
        if (stream->device == device) host_learns(stream->clock);
}

EXPORTED cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int) {
    LOCK_STATE;
    use_context("cudaStreamCreateWithPriority");
    if (!(flags & cudaStreamNonBlocking)) complain("blocking stream", "work of the default stream would wait for it");
    Stream *stream = create_stream(current_device, std::to_string(streams().all.size()));
    streams().alive.insert(stream);
    *handle = reinterpret_cast<cudaStream_t>(stream);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    LOCK_STATE;
    streams().alive.erase(handle);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    std::unique_lock<std::recursive_mutex> lock(state_mutex());
    Stream *stream = find_stream(handle);
    if (!stream) return fail(cudaErrorInvalidResourceHandle, "cudaStreamSynchronize");
    count_wait("cudaStreamSynchronize", stream->hung || !streams().waited.covers(stream->clock));
    if (stream->hung) {
        lock.unlock();
        hang();
    }
    host_learns(stream->clock);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamQuery(cudaStream_t handle) {
    LOCK_STATE;
    Stream *stream = find_stream(handle);
    return stream && !stream->hung && host_knows(stream->clock) ? cudaSuccess : cudaErrorNotReady;
}

EXPORTED cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    LOCK_STATE;
    Stream *stream = find_stream(handle);
    if (!stream || !exists(event)) return fail(cudaErrorInvalidResourceHandle, "cudaStreamWaitEvent");
    if (!as_event(event)->recorded) complain("unrecorded event", "a stream waits for it");
    const std::string name = wait_name(stream, as_event(event));
    count("stream waits " + name);
    count("cudaStreamWaitEvent");
    log_call("cudaStreamWaitEvent %s", name.c_str());
    const std::string &ignored = settings().ignored_waits;
    if (ignored != "all" && ignored != name) stream->clock.learn(as_event(event)->clock);
    stream->hung |= as_event(event)->hung;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *,
                                              const cudaGraphNode_t **, const cudaGraphEdgeData **, size_t *) {
    *status = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    return cudaSuccess;
}

EXPORTED cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *) { return cudaSuccess; }

EXPORTED cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void *data, unsigned) {
    call(stream, cudaSuccess, data);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned flags) {
    LOCK_STATE;
    use_context("cudaEventCreate");
    auto *event = new Event{current_device, !(flags & cudaEventDisableTiming)};
    streams().events.insert(event);
    count("cudaEventCreate");
    count_most("most events at a time", streams().events.size());
    *handle = reinterpret_cast<cudaEvent_t>(event);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaEventCreate(cudaEvent_t *handle) { return cudaEventCreateWithFlags(handle, 0); }

EXPORTED cudaError_t cudaEventDestroy(cudaEvent_t event) {
    LOCK_STATE;
    use_context("cudaEventDestroy");
    if (streams().events.erase(event) == 0) return fail(cudaErrorInvalidResourceHandle, "cudaEventDestroy");
    delete as_event(event);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
    LOCK_STATE;
    Stream *stream = find_stream(on);
    if (!stream || !exists(handle)) return fail(cudaErrorInvalidResourceHandle, "cudaEventRecord");
    Event *event = as_event(handle);
    if (event->device != stream->device) {
        complain("other GPU's event", "event of GPU %d, stream of GPU %d", event->device, stream->device);
        return fail(cudaErrorInvalidResourceHandle, "cudaEventRecord");
    }
    enqueue(stream);
    count("cudaEventRecord");
    log_call("cudaEventRecord on stream %s", stream->name.c_str());
    event->recorded = true;
    event->hung = stream->hung;
    event->stream = stream->name;
    event->clock = stream->clock;
    event->queries = 0;
    event->seconds = seconds_now();
    return cudaSuccess;
}

EXPORTED cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) { return cudaEventRecord(event, stream); }

EXPORTED cudaError_t cudaEventQuery(cudaEvent_t handle) {
    LOCK_STATE;
    use_context("cudaEventQuery");
    count("cudaEventQuery");
    if (!exists(handle)) return fail(cudaErrorInvalidResourceHandle, "cudaEventQuery");
    Event *event = as_event(handle);
    if (event->hung) return fail(cudaErrorNotReady, "cudaEventQuery");
    if (!event->recorded || host_knows(event->clock)) return cudaSuccess;
    if (settings().lazy_copies && event->queries++ < UNREADY_QUERIES) return fail(cudaErrorNotReady, "cudaEventQuery");
    streams().host.learn(event->clock);
    finish_copies();
    return cudaSuccess;
}

EXPORTED cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    std::unique_lock<std::recursive_mutex> lock(state_mutex());
    use_context("cudaEventSynchronize");
    if (!exists(handle)) return fail(cudaErrorInvalidResourceHandle, "cudaEventSynchronize");
    count_wait("cudaEventSynchronize", as_event(handle)->hung || !streams().waited.covers(as_event(handle)->clock));
    if (as_event(handle)->hung) {
        lock.unlock();
        hang();
    }
    if (!settings().ignore_host_waits) host_learns(as_event(handle)->clock);
    return cudaSuccess;
}

EXPORTED cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    LOCK_STATE;
    const Event *first = as_event(from);
    const Event *last = as_event(to);
    if (!first->timed || !last->timed) complain("untimed event", "cudaEventElapsedTime");
    if (!first->timed || !last->timed || !first->recorded || !last->recorded)
        return fail(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime");
    if (!host_knows(first->clock) || !host_knows(last->clock)) return fail(cudaErrorNotReady, "cudaEventElapsedTime");
    *milliseconds = static_cast<float>((last->seconds - first->seconds) * 1e3);
    return cudaSuccess;
}
