// Runs kernels.cu on a CPU, for tests. A block's threads are fibers on one thread of the host, which switch only at barriers. Their
// order is random after each barrier, so a missing barrier changes results. A barrier that not all threads of a block reach is
// an error. Blocks run in random order too.
//
//     c++ -std=c++17 -O2 -ffp-contract=off -shared -fPIC -I<folder of kernels.cu> emulate.cpp

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__ inline
#define __shared__ static thread_local
#define __launch_bounds__(threads)

struct Index {
    unsigned x;
};
static thread_local Index threadIdx, blockIdx;

static void __syncthreads();

static inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

#include "kernels.cu"

namespace {

constexpr size_t STACK = 64 << 10;

struct Block {
    void (*kernel)(Task);
    const Task *task;
    ucontext_t scheduler;
    std::vector<ucontext_t> threads = std::vector<ucontext_t>(THREADS);
    std::vector<bool> ended;
    std::unique_ptr<char[]> stacks{new char[THREADS * STACK]};
};

thread_local Block *running = nullptr;

void run_thread() {
    running->kernel(*running->task);
    running->ended[threadIdx.x] = true;
}  // returns to the scheduler, by uc_link

}  // namespace

static void __syncthreads() {
    const unsigned own = threadIdx.x;
    swapcontext(&running->threads[own], &running->scheduler);
}

extern "C" {

size_t task_bytes() { return sizeof(Task); }

// Returns 0, or 1 if some threads of a block ended while others waited at a barrier.
int emulate(void (*kernel)(Task), unsigned blocks, const Task *task, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<unsigned> thread_order(THREADS), block_order(blocks);
    std::iota(thread_order.begin(), thread_order.end(), 0u);
    std::iota(block_order.begin(), block_order.end(), 0u);
    std::shuffle(block_order.begin(), block_order.end(), random);
    Block block;
    block.kernel = kernel;
    block.task = task;
    running = &block;
    for (unsigned index : block_order) {
        blockIdx.x = index;
        block.ended.assign(THREADS, false);
        for (unsigned i = 0; i < THREADS; i++) {
            ucontext_t &thread = block.threads[i];
            getcontext(&thread);
            thread.uc_stack.ss_sp = block.stacks.get() + i * STACK;
            thread.uc_stack.ss_size = STACK;
            thread.uc_link = &block.scheduler;
            makecontext(&thread, run_thread, 0);
        }
        for (size_t count = 0; count == 0;) {
            std::shuffle(thread_order.begin(), thread_order.end(), random);
            for (unsigned i : thread_order) {
                threadIdx.x = i;
                swapcontext(&block.scheduler, &block.threads[i]);
            }
            for (bool ended : block.ended) count += ended;
            if (count != 0 && count != THREADS) return 1;
        }
    }
    running = nullptr;
    return 0;
}

}  // extern "C"
