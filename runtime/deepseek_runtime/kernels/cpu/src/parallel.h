// Loops on torch's own OpenMP team: a second team would fight it for the cores.
//
// The library is linked to no OpenMP runtime. `library.py` makes the one that torch loaded visible, and these weak
// symbols bind to it; where it has none, loops run on the calling thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

extern "C" __attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);

namespace dsv3 {

// Calls body(begin, end) for parts of [0, count) that begin at multiples of `chunk`, whoever is free takes the next:
// a thread that another process has put aside holds nobody up for longer than its chunk.
template <class Body>
void parallel_for(int64_t count, int64_t chunk, int threads, Body&& body) {
    if (threads <= 1 || count <= chunk || !GOMP_parallel) {
        if (count > 0) body(int64_t{0}, count);
        return;
    }
    struct Shared {
        std::atomic<int64_t> next;
        int64_t count, chunk;
        Body& body;
    } shared{{0}, count, chunk, body};
    auto work = [](void* pointer) {
        auto& shared = *static_cast<Shared*>(pointer);
        for (int64_t begin; (begin = shared.next.fetch_add(shared.chunk)) < shared.count;)
            shared.body(begin, std::min(begin + shared.chunk, shared.count));
    };
    GOMP_parallel(work, &shared, threads, 0);
}

// A buffer of the calling thread that keeps its memory between calls; one per `Tag` and element type.
template <class Tag, class T>
T* scratch(int64_t count) {
    static thread_local std::vector<T> buffer;
    if (static_cast<int64_t>(buffer.size()) < count + 64) buffer.resize(count + 64);
    // Aligned to a cache line.
    auto address = reinterpret_cast<uintptr_t>(buffer.data());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
}

}  // namespace dsv3
