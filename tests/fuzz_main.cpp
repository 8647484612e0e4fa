// Runs tests/fuzz_kernels.cpp on random bytes where there is no libFuzzer: the same inputs in every
// run. Of libFuzzer's arguments it knows -max_total_time=SECONDS.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  double seconds = 0.0;
  for (int i = 1; i < argc; ++i) std::sscanf(argv[i], "-max_total_time=%lf", &seconds);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::mt19937 random;
  long runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    // Most inputs short, some as long as the largest heatmaps.
    constexpr unsigned kMostBits = 12;
    std::vector<std::uint8_t> bytes(random() % (1U << random() % kMostBits));
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%ld random inputs\n", runs);
  return 0;
}
