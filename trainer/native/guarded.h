// Turns a C++ exception into a zero or null result; `codinet_last_error` returns its message on the thread that called.
#pragma once

#include <exception>
#include <string>

inline thread_local std::string last_error;

template <typename F>
auto guarded(F &&body) noexcept -> decltype(body()) {
    try {
        return body();
    } catch (const std::exception &error) {
        last_error = error.what();
    } catch (...) {
        last_error = "an unknown C++ exception";
    }
    return {};
}
