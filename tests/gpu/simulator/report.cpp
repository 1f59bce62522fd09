// What the process did: a log of all calls, their counts, and complaints.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "state.h"

namespace {

constexpr uint64_t PRINTED_COMPLAINTS = 5;  // of each kind

std::map<std::string, uint64_t> &counts() {
    static auto *const map = new std::map<std::string, uint64_t>;
    return *map;
}

std::string path_of_process(const std::string &path) { return path + "." + std::to_string(getpid()); }

FILE *log_file() {
    static FILE *const file = [] {
        FILE *opened = settings().log.empty() ? nullptr : std::fopen(path_of_process(settings().log).c_str(), "w");
        if (opened) setvbuf(opened, nullptr, _IOLBF, 0);
        return opened;
    }();
    return file;
}

// Runs at exit, and in the rank that a watchdog or an error ends with `_exit` never.
__attribute__((destructor)) void write_report() {
    LOCK_STATE;
    if (settings().report.empty()) return;
    std::ofstream file(path_of_process(settings().report));
    for (const auto &[what, n] : counts()) file << what << ": " << n << "\n";
    file << "copies in flight: " << copies_in_flight() << "\n";
}

std::string formatted(const char *format, va_list arguments) {
    char text[2000];
    std::vsnprintf(text, sizeof text, format, arguments);
    return text;
}

}  // namespace

std::recursive_mutex &state_mutex() {
    static auto *const mutex = new std::recursive_mutex;
    return *mutex;
}

void count(const std::string &what, uint64_t by) { counts()[what] += by; }

void count_most(const std::string &what, uint64_t value) {
    uint64_t &most = counts()[what];
    most = std::max(most, value);
}

void log_call(const char *format, ...) {
    if (!log_file()) return;
    va_list arguments;
    va_start(arguments, format);
    const std::string text = formatted(format, arguments);
    va_end(arguments);
    std::fprintf(log_file(), "%ld %s\n", syscall(SYS_gettid), text.c_str());
}

void complain(const std::string &kind, const char *format, ...) {
    uint64_t &times = counts()["!" + kind];
    if (++times > PRINTED_COMPLAINTS) return;
    va_list arguments;
    va_start(arguments, format);
    const std::string text = formatted(format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "[simulator, rank %s] %s: %s\n", settings().rank.c_str(), kind.c_str(), text.c_str());
    log_call("! %s: %s", kind.c_str(), text.c_str());
}
