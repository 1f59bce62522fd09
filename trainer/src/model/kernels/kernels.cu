// CUDA kernels: batch norm fused with the operations that follow it, and the normalisation of pixels. NVRTC compiles them at run
// time for the GPU that runs them (`cuda.rs`), `gpu.rs` launches them, and tests run them on a CPU (`emulate.cpp`); so they
// use only plain C++, shared memory and barriers. The formulas are those of `cpu.rs`.
//
// Activations are [N, H, W, C], f32 or bf16, with C a multiple of 16. Parameters and arithmetic are f32, sums over blocks f64.
// There are no atomic operations: each block writes its sums to `partials`, and a second kernel adds them in a fixed order, so
// results do not depend on timing. A thread reads 16 bytes at a time: LANES neighbouring channels of a pixel.
//
// The pixels of each sample are divided into `slabs` of `slab` pixels (the last may be shorter), the channels into `tiles` of
// `columns` threads. Block (n·slabs + s)·tiles + tile processes one tile of one slab. Its threads form rows of `columns`; a row
// processes every (THREADS / columns)-th pixel. `HAS_SKIP` says that a block's skip is another tensor than its shortcut.

typedef long long i64;
typedef float f32;

constexpr int THREADS = 256;  // of every block; equal to THREADS of `gpu.rs`

struct bf16 {
    unsigned short bits;
};

// A kernel's argument; the same struct, field by field, as in `gpu.rs`. Fields that a kernel does not use are null or 0.
struct Task {
    // Activations of the kernel's element type.
    const void *h;
    const void *shortcut;
    const void *skip;
    const void *out_gradient;  // null: zero
    void *out;
    void *h_gradient;
    void *shortcut_gradient;
    void *skip_gradient;
    const unsigned char *bytes;  // [N, H, W, C], any C
    // f32.
    const float *v;              // [N]
    const float *mean_gradient;  // [N, C]; null: zero
    float *partials;             // sums of blocks, for the next kernel
    float *sums;                 // the output of `fold`
    float *affine;               // [4, C]: mean, 1/σ, scale = γ/σ, β
    float *slopes;               // [4, C]: offset and slope of h's gradient; the gradients of γ and β
    const float *weight;         // γ [C]; `normalise`: the mean to subtract
    const float *bias;           // β [C]; `normalise`: the deviation to divide by
    float *running_mean;         // [C] or null
    float *running_var;          // [C] or null
    double momentum;
    double epsilon;
    i64 samples;
    i64 pixels;    // of a sample
    i64 channels;
    i64 slabs;     // of a sample; `fold`: how many partials make a sum
    i64 slab;      // in pixels
    i64 tiles;
    i64 columns;   // a power of two, at most THREADS
};

// --- Elements ---------------------------------------------------------------------------------------------------------------

template <typename T> struct alignas(16) Chunk {
    static constexpr int LANES = 16 / sizeof(T);
    T values[LANES];
};

__device__ float to_f32(float x) { return x; }
__device__ float to_f32(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ void from_f32(float lower, float upper, float *to) {
    to[0] = lower;
    to[1] = upper;
}

// Rounds to nearest, ties to even; NaN stays NaN.
__device__ void from_f32(float lower, float upper, bf16 *to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(upper), "f"(lower));
    to[0].bits = static_cast<unsigned short>(both);
    to[1].bits = static_cast<unsigned short>(both >> 16);
#else
    const float values[2] = {lower, upper};
    for (int i = 0; i < 2; i++) {
        const unsigned bits = __float_as_uint(values[i]);
        const unsigned rounded = bits + 0x7fff + ((bits >> 16) & 1);
        to[i].bits = static_cast<unsigned short>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded >> 16);
    }
#endif
}

// Loads LANES elements from index `at`, a multiple of LANES, and converts them to f32.
template <typename T> __device__ void load(float *to, const void *from, i64 at) {
    const Chunk<T> chunk = *reinterpret_cast<const Chunk<T> *>(static_cast<const T *>(from) + at);
#pragma unroll
    for (int i = 0; i < Chunk<T>::LANES; i++) to[i] = to_f32(chunk.values[i]);
}

template <typename T> __device__ void store(void *to, i64 at, const float *values) {
    Chunk<T> chunk;
#pragma unroll
    for (int i = 0; i < Chunk<T>::LANES; i += 2) from_f32(values[i], values[i + 1], chunk.values + i);
    *reinterpret_cast<Chunk<T> *>(static_cast<T *>(to) + at) = chunk;
}

// Loads N parameters or sums from index `at`, a multiple of 4.
template <int N> __device__ void load_floats(float *to, const float *from, i64 at) {
#pragma unroll
    for (int i = 0; i < N; i += 4) load<float>(to + i, from, at + i);
}

template <int N> __device__ void store_floats(float *to, i64 at, const float *values) {
#pragma unroll
    for (int i = 0; i < N; i += 4) store<float>(to, at + i, values + i);
}

// --- The slice of a thread, and sums over a block -----------------------------------------------------------------------------

struct ThreadSlice {
    i64 block;    // the slab's number, n·slabs + s
    i64 tile;
    i64 sample;
    i64 channel;  // the thread's first channel
    i64 first;    // the slab's first pixel, counted over all samples
    i64 end;      // one past the slab's last pixel
    i64 from;     // the thread's first pixel; `end` for threads beyond the last channel
    int row;
    int rows;
    bool writes;  // whether the thread writes its column's sums
};

template <typename T> __device__ ThreadSlice thread_slice(const Task &task) {
    const int columns = static_cast<int>(task.columns), column = static_cast<int>(threadIdx.x) % columns;
    ThreadSlice slice;
    slice.tile = blockIdx.x % task.tiles;
    slice.block = blockIdx.x / task.tiles;
    slice.sample = slice.block / task.slabs;
    slice.channel = (slice.tile * columns + column) * Chunk<T>::LANES;
    const i64 start = slice.block % task.slabs * task.slab;
    const i64 end = start + task.slab < task.pixels ? start + task.slab : task.pixels;
    slice.first = slice.sample * task.pixels + start;
    slice.end = slice.sample * task.pixels + end;
    slice.row = static_cast<int>(threadIdx.x) / columns;
    slice.rows = THREADS / columns;
    const bool within = slice.channel < task.channels;
    slice.from = within ? slice.first + slice.row : slice.end;
    slice.writes = within && slice.row == 0;
    return slice;
}

// Adds `values` over the rows of `columns` threads; row 0 gets the sums. All threads call it; the number of rows is a power of two.
template <int N, typename Number> __device__ void sum_rows(Number *values, int columns) {
    __shared__ Number shared[N][THREADS];
    const int own = static_cast<int>(threadIdx.x);
    __syncthreads();  // all threads have read the previous call's values
#pragma unroll
    for (int i = 0; i < N; i++) shared[i][own] = values[i];
    for (int reach = THREADS / 2; reach >= columns; reach /= 2) {
        __syncthreads();
        if (own < reach) {
#pragma unroll
            for (int i = 0; i < N; i++) shared[i][own] += shared[i][own + reach];
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = shared[i][own];  // no thread writes to row 0 any more
}

// --- Forward ------------------------------------------------------------------------------------------------------------------

// The mean and Σ (h − mean)² of each channel and slab, [slabs, 2, C], from differences from the slab's first pixel, which keeps
// precision if the mean is large. All pixels are those of one sample here.
template <typename T> __device__ void moments(const Task &task) {
    constexpr int LANES = Chunk<T>::LANES;
    const ThreadSlice slice = thread_slice<T>(task);
    float origin[LANES] = {}, sum[LANES] = {}, square[LANES] = {};
    if (slice.from < slice.end) load<T>(origin, task.h, slice.first * task.channels + slice.channel);
#pragma unroll 4
    for (i64 pixel = slice.from; pixel < slice.end; pixel += slice.rows) {
        float h[LANES];
        load<T>(h, task.h, pixel * task.channels + slice.channel);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const float off = h[i] - origin[i];
            sum[i] += off;
            square[i] += off * off;
        }
    }
    sum_rows<LANES>(sum, static_cast<int>(task.columns));
    sum_rows<LANES>(square, static_cast<int>(task.columns));
    if (slice.writes) {
        const float count = static_cast<float>(slice.end - slice.first);
        for (int i = 0; i < LANES; i++) {
            square[i] -= sum[i] * sum[i] / count;
            sum[i] = origin[i] + sum[i] / count;
        }
        store_floats<LANES>(task.partials, 2 * slice.block * task.channels + slice.channel, sum);
        store_floats<LANES>(task.partials, (2 * slice.block + 1) * task.channels + slice.channel, square);
    }
}

// Of a block that sums over slabs; THREADS / CHANNELS threads per channel. Few, so that 64 channels already occupy 32 multiprocessors;
// the sums were just written and are read from the L2 cache.
constexpr int CHANNELS = 2;

// Computes `affine` from the output of `moments`, and updates the running statistics. Block b has channels 2·b and 2·b + 1.
extern "C" __global__ void statistics(const Task task) {
    const i64 c = static_cast<i64>(blockIdx.x) * CHANNELS + threadIdx.x % CHANNELS;
    const double origin = task.partials[c];
    double sums[2] = {0.0, 0.0};  // Σ count·(mean − origin) and Σ (h − origin)²
    for (i64 slab = threadIdx.x / CHANNELS; slab < task.slabs; slab += THREADS / CHANNELS) {
        const i64 left = task.pixels - slab * task.slab;
        const double count = static_cast<double>(left < task.slab ? left : task.slab);
        const double off = task.partials[2 * slab * task.channels + c] - origin;
        sums[0] += count * off;
        sums[1] += task.partials[(2 * slab + 1) * task.channels + c] + count * off * off;
    }
    sum_rows<2>(sums, CHANNELS);
    if (threadIdx.x < CHANNELS) {
        const double count = static_cast<double>(task.pixels), off = sums[0] / count;
        const double mean = origin + off, squares = sums[1] - sums[0] * off;
        const double rstd = 1.0 / sqrt(squares / count + task.epsilon);
        task.affine[c] = static_cast<float>(mean);
        task.affine[task.channels + c] = static_cast<float>(rstd);
        task.affine[2 * task.channels + c] = static_cast<float>(task.weight[c] * rstd);
        task.affine[3 * task.channels + c] = task.bias[c];
        if (task.running_mean) {
            const double var = squares / (count > 2.0 ? count - 1.0 : 1.0);  // unbiased, as in PyTorch
            task.running_mean[c] += static_cast<float>(task.momentum * (mean - task.running_mean[c]));
            task.running_var[c] += static_cast<float>(task.momentum * (var - task.running_var[c]));
        }
    }
}

// The normalisation of LANES channels.
template <int LANES> struct Affine {
    float mean[LANES], scale[LANES], bias[LANES];
    __device__ Affine(const Task &task, i64 channel) {
        load_floats<LANES>(mean, task.affine, channel);
        load_floats<LANES>(scale, task.affine, 2 * task.channels + channel);
        load_floats<LANES>(bias, task.affine, 3 * task.channels + channel);
    }
    // The ReLU's input; bit-identical wherever it is computed again.
    __device__ float z(int i, float off, float shortcut) const { return fmaf(scale[i], off, bias[i]) + shortcut; }
};

// max(z, 0); NaN for NaN.
__device__ float relu(float z) { return z <= 0.0f ? 0.0f : z; }

// The output and, unless `partials` is null, for each slab the sum over its pixels divided by the number of the sample's pixels,
// [N·slabs, C].
template <typename T, bool ADD, bool BLEND, bool HAS_SKIP> __device__ void forward(const Task &task) {
    constexpr int LANES = Chunk<T>::LANES;
    const ThreadSlice slice = thread_slice<T>(task);
    float pooled[LANES] = {};
    if (slice.from < slice.end) {
        const Affine<LANES> affine(task, slice.channel);
        const float v = BLEND ? task.v[slice.sample] : 1.0f;
        for (i64 pixel = slice.from; pixel < slice.end; pixel += slice.rows) {
            const i64 chunk = pixel * task.channels + slice.channel;
            float h[LANES], shortcut[LANES] = {}, skip[LANES] = {};
            load<T>(h, task.h, chunk);
            if (ADD) load<T>(shortcut, task.shortcut, chunk);
            if (HAS_SKIP) load<T>(skip, task.skip, chunk);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                const float computed = relu(affine.z(i, h[i] - affine.mean[i], shortcut[i]));
                const float skipped = HAS_SKIP ? skip[i] : shortcut[i];
                h[i] = BLEND ? skipped + v * (computed - skipped) : computed;
                pooled[i] += h[i];
            }
            store<T>(task.out, chunk, h);
        }
    }
    if (!task.partials) return;
    sum_rows<LANES>(pooled, static_cast<int>(task.columns));
    if (slice.writes) {
        for (int i = 0; i < LANES; i++) pooled[i] /= static_cast<float>(task.pixels);
        store_floats<LANES>(task.partials, slice.block * task.channels + slice.channel, pooled);
    }
}

// sums[n, c] = Σ over s of partials[n, s, c], for N `samples` of `slabs` rows of `channels` numbers.
extern "C" __global__ void fold(const Task task) {
    const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= task.samples * task.channels) return;
    const float *from = task.partials + at / task.channels * task.slabs * task.channels + at % task.channels;
    double sum = 0.0;
    for (i64 slab = 0; slab < task.slabs; slab++) sum += from[slab * task.channels];
    task.sums[at] = static_cast<float>(sum);
}

// --- Backward -----------------------------------------------------------------------------------------------------------------

// Loads the gradient of the output, plus the part that comes from the output's mean.
template <typename T> __device__ void load_gradient(float *to, const Task &task, i64 chunk, const float *mean_gradient) {
    constexpr int LANES = Chunk<T>::LANES;
    if (task.out_gradient) load<T>(to, task.out_gradient, chunk);
#pragma unroll
    for (int i = 0; i < LANES; i++) to[i] = task.out_gradient ? to[i] + mean_gradient[i] : mean_gradient[i];
}

// Loads what the gradient of the output's mean adds to the gradient of each pixel.
template <int LANES> __device__ void load_mean_gradient(float *to, const Task &task, const ThreadSlice &slice) {
    if (task.mean_gradient) {
        load_floats<LANES>(to, task.mean_gradient, slice.sample * task.channels + slice.channel);
        for (int i = 0; i < LANES; i++) to[i] /= static_cast<float>(task.pixels);
    }
}

// With dz, the gradient of z: Σ dz and Σ dz·(h − mean) of each slab and channel, [N·slabs, 2, C], followed by the terms of v's
// gradient, [N·slabs, tiles].
template <typename T, bool ADD, bool BLEND, bool HAS_SKIP> __device__ void reduce(const Task &task) {
    constexpr int LANES = Chunk<T>::LANES;
    const ThreadSlice slice = thread_slice<T>(task);
    float bias[LANES] = {}, scaled[LANES] = {}, blend[1] = {0.0f};
    if (slice.from < slice.end) {
        const Affine<LANES> affine(task, slice.channel);
        const float v = BLEND ? task.v[slice.sample] : 1.0f;
        float mean_gradient[LANES] = {};
        load_mean_gradient<LANES>(mean_gradient, task, slice);
        for (i64 pixel = slice.from; pixel < slice.end; pixel += slice.rows) {
            const i64 chunk = pixel * task.channels + slice.channel;
            float h[LANES], shortcut[LANES] = {}, skip[LANES] = {}, gradient[LANES];
            load<T>(h, task.h, chunk);
            if (ADD) load<T>(shortcut, task.shortcut, chunk);
            if (HAS_SKIP) load<T>(skip, task.skip, chunk);
            load_gradient<T>(gradient, task, chunk, mean_gradient);
#pragma unroll
            for (int i = 0; i < LANES; i++) {
                const float off = h[i] - affine.mean[i], z = affine.z(i, off, shortcut[i]);
                if (BLEND) blend[0] += gradient[i] * (relu(z) - (HAS_SKIP ? skip[i] : shortcut[i]));
                const float dz = z <= 0.0f ? 0.0f : (BLEND ? v * gradient[i] : gradient[i]);
                bias[i] += dz;
                scaled[i] += dz * off;
            }
        }
    }
    sum_rows<LANES>(bias, static_cast<int>(task.columns));
    sum_rows<LANES>(scaled, static_cast<int>(task.columns));
    if (slice.writes) {
        store_floats<LANES>(task.partials, 2 * slice.block * task.channels + slice.channel, bias);
        store_floats<LANES>(task.partials, (2 * slice.block + 1) * task.channels + slice.channel, scaled);
    }
    if (BLEND) {
        sum_rows<1>(blend, 1);
        const i64 sums = 2 * task.samples * task.slabs * task.channels;
        if (threadIdx.x == 0) task.partials[sums + slice.block * task.tiles + slice.tile] = blend[0];
    }
}

// Computes `slopes` from the output of `reduce` for all samples' slabs. Block b has channels 2·b and 2·b + 1.
extern "C" __global__ void gradients(const Task task) {
    const i64 c = static_cast<i64>(blockIdx.x) * CHANNELS + threadIdx.x % CHANNELS;
    double sums[2] = {0.0, 0.0};
    for (i64 slab = threadIdx.x / CHANNELS; slab < task.samples * task.slabs; slab += THREADS / CHANNELS) {
        sums[0] += task.partials[2 * slab * task.channels + c];
        sums[1] += task.partials[(2 * slab + 1) * task.channels + c];
    }
    sum_rows<2>(sums, CHANNELS);
    if (threadIdx.x < CHANNELS) {
        const double count = static_cast<double>(task.samples * task.pixels), rstd = task.affine[task.channels + c];
        task.slopes[c] = static_cast<float>(sums[0] / count);
        task.slopes[task.channels + c] = static_cast<float>(sums[1] * rstd * rstd / count);
        task.slopes[2 * task.channels + c] = static_cast<float>(sums[1] * rstd);
        task.slopes[3 * task.channels + c] = static_cast<float>(sums[0]);
    }
}

// The gradients of h, scale·(dz − offset − slope·(h − mean)), of the shortcut and of the skip.
template <typename T, bool ADD, bool BLEND, bool HAS_SKIP> __device__ void backward(const Task &task) {
    constexpr int LANES = Chunk<T>::LANES;
    const ThreadSlice slice = thread_slice<T>(task);
    if (slice.from >= slice.end) return;
    const Affine<LANES> affine(task, slice.channel);
    const float v = BLEND ? task.v[slice.sample] : 1.0f;
    float mean_gradient[LANES] = {}, offset[LANES], slope[LANES];
    load_mean_gradient<LANES>(mean_gradient, task, slice);
    load_floats<LANES>(offset, task.slopes, slice.channel);
    load_floats<LANES>(slope, task.slopes, task.channels + slice.channel);
    for (i64 pixel = slice.from; pixel < slice.end; pixel += slice.rows) {
        const i64 chunk = pixel * task.channels + slice.channel;
        float h[LANES], shortcut[LANES] = {}, gradient[LANES];
        load<T>(h, task.h, chunk);
        if (ADD) load<T>(shortcut, task.shortcut, chunk);
        load_gradient<T>(gradient, task, chunk, mean_gradient);
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            const float off = h[i] - affine.mean[i], z = affine.z(i, off, shortcut[i]);
            const float dz = z <= 0.0f ? 0.0f : (BLEND ? v * gradient[i] : gradient[i]);
            h[i] = affine.scale[i] * (dz - offset[i] - slope[i] * off);
            if (BLEND) gradient[i] *= 1.0f - v;
            shortcut[i] = BLEND && !HAS_SKIP ? dz + gradient[i] : dz;
        }
        store<T>(task.h_gradient, chunk, h);
        if (ADD) store<T>(task.shortcut_gradient, chunk, shortcut);
        if (HAS_SKIP) store<T>(task.skip_gradient, chunk, gradient);
    }
}

// --- Pixels -------------------------------------------------------------------------------------------------------------------

// (byte / 255 − mean) / deviation, for any number of channels. A thread has LANES neighbouring elements; the last thread may
// have fewer.
template <typename T> __device__ void normalise(const Task &task) {
    constexpr int LANES = Chunk<T>::LANES;
    const i64 count = task.samples * task.pixels * task.channels;
    const i64 first = (static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x) * LANES;
    int c = static_cast<int>(first % task.channels);
    float values[LANES];
#pragma unroll
    for (int i = 0; i < LANES; i++) {
        const float byte = first + i < count ? task.bytes[first + i] : 0.0f;
        values[i] = (byte / 255.0f - task.weight[c]) / task.bias[c];
        c = c + 1 < task.channels ? c + 1 : 0;
    }
    if (first + LANES <= count) {
        store<T>(task.out, first, values);
    } else {
        for (int i = 0; i < LANES; i += 2) {
            T pair[2];
            from_f32(values[i], values[i + 1], pair);
            if (first + i < count) static_cast<T *>(task.out)[first + i] = pair[0];
            if (first + i + 1 < count) static_cast<T *>(task.out)[first + i + 1] = pair[1];
        }
    }
}

// --- The kernels --------------------------------------------------------------------------------------------------------------

#define KERNEL(name, ...) \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const Task task) { __VA_ARGS__(task); }
#define EPILOGUES(name, T)                                           \
    KERNEL(name##_##T##_relu, name<T, false, false, false>)      \
    KERNEL(name##_##T##_add_relu, name<T, true, false, false>)   \
    KERNEL(name##_##T##_blend, name<T, true, true, false>)       \
    KERNEL(name##_##T##_blend_with_skip, name<T, true, true, true>)
#define ELEMENT(T)                    \
    KERNEL(moments_##T, moments<T>)   \
    KERNEL(normalise_##T, normalise<T>)   \
    EPILOGUES(forward, T)                 \
    EPILOGUES(reduce, T)                  \
    EPILOGUES(backward, T)

ELEMENT(f32)
ELEMENT(bf16)
