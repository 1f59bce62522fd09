// Vector clocks. The n-th piece of work on a stream has time n of that stream. A clock holds for every stream the latest time that
// its owner, a stream, an event or the host, knows to be over.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

class Clock {
  public:
    // Afterwards this clock covers `other` too.
    void learn(const Clock &other) {
        if (times.size() < other.times.size()) times.resize(other.times.size());
        for (size_t i = 0; i < other.times.size(); i++) times[i] = std::max(times[i], other.times[i]);
    }

    bool covers(size_t stream, uint64_t time) const { return stream < times.size() && times[stream] >= time; }

    bool covers(const Clock &other) const {
        for (size_t i = 0; i < other.times.size(); i++)
            if (other.times[i] != 0 && !covers(i, other.times[i])) return false;
        return true;
    }

    // The time of the next piece of work on `stream`.
    uint64_t advance(size_t stream) {
        if (times.size() <= stream) times.resize(stream + 1);
        return ++times[stream];
    }

  private:
    std::vector<uint64_t> times;
};
