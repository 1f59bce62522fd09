#include "settings.h"

#include <cctype>
#include <cstdlib>
#include <sstream>

namespace {

std::string text(const char *name, const char *fallback = "") {
    const char *value = std::getenv(name);
    return value ? value : fallback;
}

uint64_t number(const char *name, uint64_t fallback) {
    const char *value = std::getenv(name);
    return value ? std::strtoull(value, nullptr, 10) : fallback;
}

bool flag(const char *name) { return std::getenv(name) != nullptr; }

// As the driver does: GPUs up to the first that does not exist.
std::vector<int> visible_gpus() {
    const int installed = static_cast<int>(number("SIM_GPUS", 2));
    std::vector<int> gpus;
    if (!flag("CUDA_VISIBLE_DEVICES")) {
        for (int gpu = 0; gpu < installed; gpu++) gpus.push_back(gpu);
        return gpus;
    }
    std::istringstream list(text("CUDA_VISIBLE_DEVICES"));
    for (std::string item; std::getline(list, item, ',');) {
        if (item.empty() || !std::isdigit(item[0]) || std::stoi(item) >= installed) break;
        gpus.push_back(std::stoi(item));
    }
    return gpus;
}

Settings read() {
    Settings s;
    s.gpus = visible_gpus();
    s.bytes_per_gpu = number("SIM_GPU_MB", 4096) << 20;
    s.lazy_copies = !flag("SIM_EAGER_COPIES");
    s.poison = flag("SIM_POISON");
    s.ignore_host_waits = flag("SIM_IGNORE_HOST_WAITS");
    s.ignore_record_stream = flag("SIM_IGNORE_RECORD_STREAM");
    s.ignored_waits = text("SIM_IGNORE_WAITS");
    s.good_copies = number("SIM_GOOD_COPIES", UINT64_MAX);
    s.good_collectives = number("SIM_NCCL_GOOD", UINT64_MAX);
    s.nccl_fault = text("SIM_NCCL_FAULT");
    s.nccl_version = static_cast<int>(number("SIM_NCCL_VERSION", 22809));
    s.emulator = text("SIM_EMULATOR");
    s.log = text("SIM_LOG");
    s.report = text("SIM_REPORT");
    s.rank = text("OMPI_COMM_WORLD_RANK", "-");
    return s;
}

}  // namespace

const Settings &settings() {
    static const Settings *const once = new Settings(read());  // also read after the destructors of statics
    return *once;
}
