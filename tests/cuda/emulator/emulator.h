// CUDA C++ on the CPU, for tests: a kernel's blocks run one after the other, the threads of a block as fibers that
// switch where they meet. What a GPU leaves undefined shows: shared memory begins as NaN and ends where the launch
// said, threads that don't meet are an error, a missing barrier gives other results in another `order` of the threads,
// and where a copy goes that nobody has waited for, there is NaN.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)
#define __align__(...)

namespace cmx {
alignas(16) extern float shared[];  // the memory behind `extern __shared__ float shared[]`
}

namespace emulator {

struct Index {
  unsigned x = 0;
};
inline Index thread_index, block_index, block_size;

constexpr int kLanes = 32;
constexpr int kSharedFloats = 99 * 1024 / sizeof(float);  // of a block: the least of the chips
constexpr size_t kStackBytes = 128 << 10;
constexpr uint32_t kCanary = 0x7fc0cafe;  // a NaN

enum class At { kRunning, kShuffle, kBarrier, kEnd };
enum class Order { kForward, kBackward };

inline Order order = Order::kForward;
inline int launches = 0;
inline int resident_blocks = 1;

// A copy that has been started: `size` bytes, of which the first `bytes` come from there.
struct Copy {
  char* to;
  const char* from;
  int size, bytes;
};

// A stack that is left at one point and taken up again there. swapcontext asks the system twice at each switch, which
// was half of the tests' time; setjmp does not, but AddressSanitizer does not follow it to another stack.
class Fiber {
 public:
  // Begins `body` on that memory when it is first gone to. A fiber that has not been given one is the caller's own.
  void begin(void (*body)(), char* stack, size_t bytes) {
    getcontext(&context_);
    context_.uc_stack = {stack, 0, bytes};
    context_.uc_link = nullptr;  // the body goes to another fiber at its end
    makecontext(&context_, body, 0);
    begun_ = false;
  }

  void go_to(Fiber& other) {
#ifdef __SANITIZE_ADDRESS__
    swapcontext(&context_, &other.context_);
#else
    if (_setjmp(left_)) return;
    if (std::exchange(other.begun_, true)) _longjmp(other.left_, 1);
    setcontext(&other.context_);
#endif
  }

 private:
  ucontext_t context_;
  jmp_buf left_;
  bool begun_ = true;
};

// The threads of the block that is running.
class Block {
 public:
  template <class Body>
  void run(unsigned threads, const Body& body) {
    call_ = [](const void* data) { (*static_cast<const Body*>(data))(); };
    body_ = &body;
    block_size.x = threads;
    at_.assign(threads, At::kRunning);
    turn_.assign(threads, 0);
    vote_.assign(threads, 0);
    votes_.fill(false);
    started_.assign(threads, std::vector<std::vector<Copy>>(1));
    for (auto& slots : given_) slots.resize(threads);
    error_ = nullptr;
    fibers_.resize(std::max<size_t>(fibers_.size(), threads));
    stacks_.resize(fibers_.size());
    for (unsigned i = 0; i < threads; ++i) start(i);
    while (!step()) {
    }
  }

  // Called by a thread: it waits until all that it meets are there, too.
  void meet(At where) {
    at_[thread_index.x] = where;
    fibers_[thread_index.x].go_to(scheduler_);
  }

  // Values of every lane of the warp; they lie there until the next call but one, which no lane reaches before all
  // have read.
  template <class T>
  std::array<const T*, kLanes> share(const T& mine) {
    const unsigned self = thread_index.x;
    auto& slots = given_[turn_[self] ^= 1];
    static_assert(sizeof(T) <= sizeof slots[0].bytes);
    std::memcpy(slots[self].bytes, &mine, sizeof mine);
    meet(At::kShuffle);
    std::array<const T*, kLanes> all;
    for (int i = 0; i < kLanes; ++i) all[i] = reinterpret_cast<const T*>(slots[self / kLanes * kLanes + i].bytes);
    return all;
  }

  // True if any thread of the block gave true where all meet. Of three votes in turn the next is emptied: all have read
  // it, and none has begun it.
  bool any(bool mine) {
    const int turn = vote_[thread_index.x] = (vote_[thread_index.x] + 1) % 3;
    votes_[(turn + 1) % 3] = false;
    votes_[turn] |= mine;
    meet(At::kBarrier);
    return votes_[turn];
  }

  // Ends the launch, from a thread.
  void fail(const char* error) {
    error_ = error;
    meet(At::kEnd);
  }

  // Copies of this thread, the last group still open. What arrives may arrive at once: the old content is gone.
  void start_copy(const Copy& copy) {
    if (reinterpret_cast<uintptr_t>(copy.to) % copy.size || reinterpret_cast<uintptr_t>(copy.from) % copy.size)
      fail("an unaligned copy");
    std::memset(copy.to, 0xff, copy.size);
    started_[thread_index.x].back().push_back(copy);
  }
  void end_group() { started_[thread_index.x].emplace_back(); }
  void wait_for_groups(unsigned left) {
    auto& groups = started_[thread_index.x];
    for (; groups.size() > left + 1; groups.erase(groups.begin()))
      for (const Copy& copy : groups.front()) {
        std::memset(copy.to, 0, copy.size);
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
  }

 private:
  void start(unsigned thread) {
    if (!stacks_[thread]) stacks_[thread] = std::make_unique<char[]>(kStackBytes);
    fibers_[thread].begin(&Block::main, stacks_[thread].get(), kStackBytes);
  }
  static void main();

  void resume(unsigned thread) {
    thread_index.x = thread;
    at_[thread] = At::kRunning;
    running_ = this;
    scheduler_.go_to(fibers_[thread]);
    if (error_) throw std::runtime_error(error_);
  }

  // Runs every warp up to its next barrier; whether the block has ended.
  bool step() {
    const unsigned threads = block_size.x, warps = (threads + kLanes - 1) / kLanes;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned warp = order == Order::kForward ? i : warps - 1 - i;
      const unsigned first = warp * kLanes, lanes = std::min<unsigned>(kLanes, threads - first);
      do {
        for (unsigned j = 0; j < lanes; ++j) resume(first + (order == Order::kForward ? j : lanes - 1 - j));
        for (unsigned j = 1; j < lanes; ++j)
          if (at_[first + j] != at_[first]) throw std::runtime_error("threads of a warp don't meet");
        if (at_[first] == At::kShuffle && lanes < kLanes) throw std::runtime_error("a shuffle in a partial warp");
      } while (at_[first] == At::kShuffle);
    }
    for (unsigned i = 1; i < threads; ++i)
      if (at_[i] != at_[0]) throw std::runtime_error("threads of a block don't meet");
    if (at_[0] != At::kEnd) return false;
    for (const auto& groups : started_)
      for (const auto& group : groups)
        if (!group.empty()) throw std::runtime_error("a block ends before its copies");
    return true;
  }

  struct alignas(16) Slot {
    char bytes[64];
  };

  static inline Block* running_;
  void (*call_)(const void*);
  const void* body_;
  Fiber scheduler_;
  std::vector<Fiber> fibers_;
  std::vector<std::unique_ptr<char[]>> stacks_;
  std::vector<At> at_;
  std::vector<int> turn_;  // which slots a thread gave last
  std::vector<Slot> given_[2];
  std::vector<int> vote_;  // of a thread, the last
  std::array<bool, 3> votes_;
  std::vector<std::vector<std::vector<Copy>>> started_;  // by thread and group
  const char* error_ = nullptr;
};

inline void Block::main() {
  Block* const block = running_;
  block->call_(block->body_);
  block->meet(At::kEnd);
}

inline Block& block() {
  static Block one;
  return one;
}

// Stands in for the .cu files' Launch, which starts kernels on a GPU.
struct Launch {
  template <class... Parameters>
  int64_t resident(void (*)(Parameters...), int, int floats) const {
    if (floats > kSharedFloats) throw std::runtime_error("more shared memory than a block can have");
    return resident_blocks;
  }

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, int floats, Arguments... given) const {
    if (blocks < 1 || threads < 1 || threads > 1024 || floats > kSharedFloats)
      throw std::runtime_error("a launch that a GPU refuses");
    ++launches;
    const std::tuple<Parameters...> arguments(given...);
    for (int64_t i = 0; i < blocks; ++i) {
      block_index.x = unsigned(order == Order::kForward ? i : blocks - 1 - i);
      std::fill_n(cmx::shared, floats, NAN);
      for (int k = floats; k < kSharedFloats; ++k) std::memcpy(cmx::shared + k, &kCanary, sizeof kCanary);
      block().run(threads, [&] { std::apply(kernel, arguments); });
      for (int k = floats; k < kSharedFloats; ++k)
        if (std::memcmp(cmx::shared + k, &kCanary, sizeof kCanary))
          throw std::runtime_error("a write beyond the shared memory");
    }
  }
};

}  // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
using std::max;
using std::min;

inline void __syncthreads() { emulator::block().meet(emulator::At::kBarrier); }
inline int __syncthreads_or(int mine) { return emulator::block().any(mine); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return *emulator::block().share(value)[threadIdx.x % emulator::kLanes ^ mask];
}
