// Run a bundle of qcompile's format "tvm" from C++17; needs libtvm_ffi.so and libtvm_runtime.so alone.
//
//     qcompile::Model model("mobilenet.qc");
//     std::vector<qcompile::Tensor> outputs = model.run({image});
//
// Headers: this one, and those of TVM's FFI: `pip install apache-tvm-ffi`, then `include/` of the
// folder that `python -c "import tvm_ffi; print(tvm_ffi.__path__[0])"` prints. Every error is a
// std::runtime_error whose text says what is wrong and what to do.
#pragma once

#include <dlfcn.h>
#include <elf.h>
#include <sched.h>
#include <stdlib.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace qcompile {

using Shape = std::vector<int64_t>;

// An array in row-major order. `dtype` is numpy's name: "float32", "int8", "bool", ...
struct Tensor {
  std::string dtype;
  Shape shape;
  std::vector<uint8_t> bytes;

  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(bytes.data());
  }
};

using Tensors = std::map<std::string, Tensor>;  // by name

// threads: workers of TVM's pool; 0 is one for each of `cpus`, or one alone.
// cpus: CPUs to pin them to, the calling thread among them. Both hold for the whole process.
// device: "cpu" or "cuda"; empty takes what the manifest says.
// verify: compare the library with the manifest's digest, some milliseconds a MB.
struct Options {
  int threads = 0;
  std::vector<int> cpus;
  std::string device;
  bool verify = true;
};

namespace detail {

// Names from files are part of messages, so control characters become question marks.
[[noreturn]] inline void fail(std::string message) {
  const auto is_control = [](unsigned char byte) { return byte < 32 || byte == 127; };
  std::replace_if(message.begin(), message.end(), is_control, '?');
  throw std::runtime_error(message);
}

template <typename Items, typename Text>
std::string join(const Items& items, const Text& text) {
  std::string joined;
  for (const auto& item : items) joined += (joined.empty() ? "" : ", ") + text(item);
  return joined;
}

inline std::string text_of(const Shape& shape) {
  return "[" + join(shape, [](int64_t size) { return std::to_string(size); }) + "]";
}

inline std::vector<uint8_t> read_file(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail(file + " cannot be opened; check the path and its permissions");
  std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(stream), {}};
  if (stream.bad()) fail(file + " cannot be read; is it a folder or is the disk damaged?");
  return bytes;
}

// Sizes and numpy's type codes: numpy/lib/format.py, "descr".
struct Type {
  const char* name;
  const char* code;
  size_t size;
};
constexpr Type kTypes[] = {{"float32", "<f4", 4}, {"float16", "<f2", 2}, {"float64", "<f8", 8},
                           {"int8", "|i1", 1},    {"uint8", "|u1", 1},   {"int16", "<i2", 2},
                           {"uint16", "<u2", 2},  {"int32", "<i4", 4},   {"uint32", "<u4", 4},
                           {"int64", "<i8", 8},   {"uint64", "<u8", 8},  {"bool", "|b1", 1}};

inline const Type& type_named(const std::string& name, const std::string& where) {
  for (const Type& type : kTypes) {
    if (name == type.name) return type;
  }
  fail(where + " has the type " + name + ", which is none of: " +
       join(kTypes, [](const Type& type) { return std::string(type.name); }));
}

// Bytes of an array; sizes come from files, so the product is checked.
inline size_t byte_count(const Shape& shape, size_t item, const std::string& where) {
  size_t bytes = item;
  for (int64_t size : shape) {
    if (size < 0 || (size > 0 && bytes > std::numeric_limits<int64_t>::max() / uint64_t(size))) {
      fail(where + " has the impossible shape " + text_of(shape));
    }
    bytes *= size_t(size);
  }
  return bytes;
}

// --- .npy: numpy/lib/format.py. Magic, version, length of the header, header (a Python dict), data.

inline std::string npy_value(const std::string& header, const std::string& key,
                             const std::string& where) {
  size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) fail(where + " is no .npy file: its header has no " + key);
  at = header.find_first_not_of(' ', at + key.size() + 3);
  if (at == std::string::npos) fail(where + " is a damaged .npy file");
  const char last = header[at] == '(' ? ')' : ',';
  return header.substr(at, header.find(last, at) - at);
}

inline Shape npy_shape(const std::string& text, const std::string& where) {
  Shape shape;
  for (size_t at = text.find_first_of("0123456789"); at < text.size();
       at = text.find_first_of("0123456789", at)) {
    const size_t end = std::min(text.find_first_not_of("0123456789", at), text.size());
    if (end - at > 18) fail(where + " has an impossible shape");
    shape.push_back(std::stoll(text.substr(at, end - at)));
    at = end;
  }
  return shape;
}

inline Tensor decode_npy(const uint8_t* data, size_t size, const std::string& where) {
  if (size < 12 || std::memcmp(data, "\x93NUMPY", 6) != 0) {
    fail(where + " is no .npy file; write it with numpy.save");
  }
  const bool wide = data[6] > 1;
  const size_t start = wide ? 12 : 10;
  size_t length = data[8] | data[9] << 8;
  if (wide) length |= size_t(data[10]) << 16 | size_t(data[11]) << 24;
  if (length > size - start) fail(where + " is a truncated .npy file");
  const std::string header(reinterpret_cast<const char*>(data) + start, length);
  const std::string quoted = npy_value(header, "descr", where);
  const auto type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const Type& known) {
    return quoted == std::string("'") + known.code + "'";
  });
  if (type == std::end(kTypes)) {
    fail(where + " has numpy's type " + quoted + ", which models have not; convert it");
  }
  Tensor tensor{type->name, npy_shape(npy_value(header, "shape", where), where), {}};
  if (npy_value(header, "fortran_order", where) != "False" && tensor.shape.size() > 1) {
    fail(where + " is in Fortran order; save numpy.ascontiguousarray of it");
  }
  const size_t bytes = byte_count(tensor.shape, type->size, where);
  if (bytes != size - start - length) fail(where + " is a truncated or damaged .npy file");
  tensor.bytes.assign(data + start + length, data + size);
  return tensor;
}

inline std::string encode_npy(const Tensor& tensor, const std::string& where) {
  std::string shape;
  for (int64_t size : tensor.shape) shape += std::to_string(size) + ", ";
  if (tensor.shape.size() > 1) shape.resize(shape.size() - 2);
  std::string header = std::string("{'descr': '") + type_named(tensor.dtype, where).code +
                       "', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.resize((header.size() + 11 + 63) / 64 * 64 - 11, ' ');
  header += '\n';
  const char start[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, char(header.size() & 255),
                        char(header.size() >> 8)};
  return std::string(start, sizeof(start)) + header +
         std::string(tensor.bytes.begin(), tensor.bytes.end());
}

// --- .npz: a ZIP archive of .npy entries. PKWARE APPNOTE 4.3.7 (local), 4.3.12 (central), 4.3.16 (end).

inline uint32_t crc32(const uint8_t* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
      made[byte] = value;
    }
    return made;
  }();
  uint32_t value = ~0u;
  for (size_t at = 0; at < size; ++at) value = table[(value ^ data[at]) & 255] ^ value >> 8;
  return ~value;
}

class ZipReader {
 public:
  ZipReader(std::vector<uint8_t> bytes, std::string file)
      : bytes_(std::move(bytes)), file_(std::move(file)) {}

  Tensors read() const {
    const size_t end = end_record();
    size_t at = number(end + 16, 4);
    Tensors tensors;
    for (size_t left = number(end + 10, 2); left > 0; --left) at = entry(at, &tensors);
    return tensors;
  }

 private:
  [[noreturn]] void damaged() const { fail(file_ + " is no .npz file, or a damaged one"); }

  size_t number(size_t at, size_t size) const {
    if (at > bytes_.size() || bytes_.size() - at < size) damaged();
    size_t value = 0;
    while (size-- > 0) value = value << 8 | bytes_[at + size];
    return value;
  }

  size_t end_record() const {
    const size_t last = bytes_.size() < 22 ? 0 : bytes_.size() - 22;
    for (size_t back = 0; back <= std::min<size_t>(last, 65535); ++back) {
      if (number(last - back, 4) == 0x06054B50) return last - back;
    }
    damaged();
  }

  size_t entry(size_t at, Tensors* tensors) const {
    if (number(at, 4) != 0x02014B50) damaged();
    const size_t size = number(at + 20, 4), length = number(at + 28, 2), local = number(at + 42, 4);
    const size_t next = at + 46 + length + number(at + 30, 2) + number(at + 32, 2);
    if (next > bytes_.size()) damaged();
    std::string name(reinterpret_cast<const char*>(&bytes_[at + 46]), length);
    const std::string where = file_ + ":" + name;
    if (number(at + 10, 2) != 0) {
      fail(where + " is compressed; save with numpy.savez, not numpy.savez_compressed");
    }
    if (size == 0xFFFFFFFF || local == 0xFFFFFFFF) fail(where + " is larger than 4 GiB");
    const size_t start = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    if (start > bytes_.size() || bytes_.size() - start < size) damaged();
    if (crc32(bytes_.data() + start, size) != number(at + 16, 4)) {
      fail(where + " is damaged: its checksum differs");
    }
    if (length > 4 && name.compare(length - 4, 4, ".npy") == 0) name.resize(length - 4);
    (*tensors)[name] = decode_npy(bytes_.data() + start, size, where);
    return next;
  }

  std::vector<uint8_t> bytes_;
  std::string file_;
};

inline std::string little_endian(std::initializer_list<std::pair<uint64_t, int>> fields) {
  std::string bytes;
  for (auto [value, size] : fields) {
    for (int at = 0; at < size; ++at) bytes += char(value >> 8 * at);
  }
  return bytes;
}

inline std::string encode_npz(const Tensors& tensors, const std::string& file) {
  std::string archive, directory;
  for (const auto& [name, tensor] : tensors) {
    const std::string entry = name + ".npy", data = encode_npy(tensor, name);
    const uint64_t offset = archive.size(), size = data.size(), date = 1 << 5 | 1;  // 1980-01-01
    if (offset + size > 0xF0000000) fail(file + " would be larger than 4 GiB");
    const uint32_t sum = crc32(reinterpret_cast<const uint8_t*>(data.data()), size);
    const bool ascii =
        std::all_of(entry.begin(), entry.end(), [](char c) { return (c & 0x80) == 0; });
    const uint64_t flags = ascii ? 0 : 0x800;  // the name is UTF-8
    const std::string common =
        little_endian({{20, 2}, {flags, 2}, {0, 2}, {0, 2}, {date, 2}, {sum, 4}, {size, 4},
                       {size, 4}, {entry.size(), 2}, {0, 2}});
    archive += little_endian({{0x04034B50, 4}}) + common + entry + data;
    directory += little_endian({{0x02014B50, 4}, {3 << 8 | 20, 2}}) + common +
                 little_endian({{0, 6}, {0644u << 16, 4}, {offset, 4}}) + entry;
  }
  const size_t count = tensors.size();
  return archive + directory +
         little_endian({{0x06054B50, 4}, {0, 4}, {count, 2}, {count, 2}, {directory.size(), 4},
                        {archive.size(), 4}, {0, 2}});
}

}  // namespace detail

// Read an .npz that numpy.savez wrote.
inline Tensors read_npz(const std::string& file) {
  return detail::ZipReader(detail::read_file(file), file).read();
}

inline Tensor read_npy(const std::string& file) {
  const std::vector<uint8_t> bytes = detail::read_file(file);
  return detail::decode_npy(bytes.data(), bytes.size(), file);
}

namespace detail {

inline void write_file(const std::string& file, const std::string& bytes) {
  std::ofstream stream(file, std::ios::binary);
  stream.write(bytes.data(), std::streamsize(bytes.size()));
  stream.close();
  if (!stream) fail(file + " cannot be written; check its folder, its permissions and the disk");
}

}  // namespace detail

// Write an .npz whose bytes depend on the tensors alone.
inline void write_npz(const std::string& file, const Tensors& tensors) {
  detail::write_file(file, detail::encode_npz(tensors, file));
}

inline void write_npy(const std::string& file, const Tensor& tensor) {
  detail::write_file(file, detail::encode_npy(tensor, file));
}

namespace detail {

// --- What this CPU can do: names of LLVM, as the compiler was given them.

#if defined(__x86_64__)
constexpr uint16_t kMachine = EM_X86_64;
constexpr const char* kArchitecture = "x86_64";

inline std::map<std::string, bool> cpu_features() {
  __builtin_cpu_init();
#define QCOMPILE_FEATURE(name) {name, __builtin_cpu_supports(name) != 0}
  return {QCOMPILE_FEATURE("sse4.2"),     QCOMPILE_FEATURE("avx"),
          QCOMPILE_FEATURE("avx2"),       QCOMPILE_FEATURE("fma"),
          QCOMPILE_FEATURE("f16c"),       QCOMPILE_FEATURE("avx512f"),
          QCOMPILE_FEATURE("avx512bw"),   QCOMPILE_FEATURE("avx512cd"),
          QCOMPILE_FEATURE("avx512dq"),   QCOMPILE_FEATURE("avx512vl"),
          QCOMPILE_FEATURE("avx512vnni"), QCOMPILE_FEATURE("avxvnni"),
          QCOMPILE_FEATURE("avx512bf16"), QCOMPILE_FEATURE("amx-tile"),
          QCOMPILE_FEATURE("amx-int8"),   QCOMPILE_FEATURE("amx-bf16")};
#undef QCOMPILE_FEATURE
}
#elif defined(__aarch64__)
constexpr uint16_t kMachine = EM_AARCH64;
constexpr const char* kArchitecture = "aarch64";

// Bits of AT_HWCAP and AT_HWCAP2: Linux, arch/arm64/include/uapi/asm/hwcap.h.
inline std::map<std::string, bool> cpu_features() {
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  const auto bit = [](unsigned long word, int at) { return (word >> at & 1) != 0; };
  return {{"neon", bit(first, 1)},     {"fullfp16", bit(first, 9) && bit(first, 10)},
          {"dotprod", bit(first, 20)}, {"sve", bit(first, 22)},
          {"sve2", bit(second, 1)},    {"i8mm", bit(second, 13)},
          {"bf16", bit(second, 14)},   {"sme", bit(second, 23)},
          {"sme2", bit(second, 37)}};
}
#else
#error "qcompile.hpp knows x86_64 and aarch64"
#endif

inline void check_cpu(const std::vector<std::string>& needed) {
  const std::map<std::string, bool> has = cpu_features();
  std::vector<std::string> missing;
  for (const std::string& name : needed) {
    const auto found = has.find(name);
    if (found == has.end() || !found->second) missing.push_back(name);
  }
  if (missing.empty()) return;
  fail("this CPU lacks the instruction sets " + join(missing, [](auto& name) { return name; }) +
       ", which the model was compiled for; build it for a target without them");
}

// --- The library's ELF header and segments, before the loader sees a file that it would crash on.

inline std::string architecture_named(uint16_t machine) {
  if (machine == EM_X86_64) return "x86_64";
  if (machine == EM_AARCH64) return "aarch64";
  return "machine " + std::to_string(machine);
}

template <typename Struct>
Struct read_struct(std::ifstream& stream, uint64_t offset, const std::string& damaged) {
  Struct value;
  stream.seekg(std::streamoff(offset));
  if (!stream.read(reinterpret_cast<char*>(&value), sizeof(value))) fail(damaged);
  return value;
}

inline void check_library(const std::string& file) {
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  if (!stream) fail(file + " cannot be opened; is the bundle complete?");
  const uint64_t size = uint64_t(stream.tellg());
  const std::string damaged = file + " is truncated or no shared library; copy the bundle again";
  const auto header = read_struct<Elf64_Ehdr>(stream, 0, damaged);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) fail(damaged);
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kMachine) {
    fail(file + " is a library for " + architecture_named(header.e_machine) +
         " and this program runs on " + kArchitecture + "; use the bundle of that architecture");
  }
  for (int index = 0; index < header.e_phnum; ++index) {
    const auto segment = read_struct<Elf64_Phdr>(
        stream, header.e_phoff + uint64_t(index) * sizeof(Elf64_Phdr), damaged);
    if (segment.p_filesz > size || segment.p_offset > size - segment.p_filesz) fail(damaged);
  }
  const uint64_t sections = uint64_t(header.e_shnum) * header.e_shentsize;
  if (header.e_shoff > size || sections > size - header.e_shoff) fail(damaged);
}

// --- SHA-256: FIPS 180-4, 6.2. The constants are fractions of roots of the first primes.

constexpr uint32_t kRounds[64] = {
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2};

inline void sha256_block(const uint8_t* block, std::array<uint32_t, 8>* state) {
  const auto turn = [](uint32_t value, int by) { return value >> by | value << (32 - by); };
  uint32_t words[64];
  for (int at = 0; at < 16; ++at) {
    words[at] = uint32_t(block[4 * at]) << 24 | uint32_t(block[4 * at + 1]) << 16 |
                uint32_t(block[4 * at + 2]) << 8 | block[4 * at + 3];
  }
  for (int at = 16; at < 64; ++at) {
    const uint32_t early = words[at - 15], late = words[at - 2];
    words[at] = words[at - 16] + words[at - 7] + (turn(early, 7) ^ turn(early, 18) ^ early >> 3) +
                (turn(late, 17) ^ turn(late, 19) ^ late >> 10);
  }
  const std::array<uint32_t, 8> start = *state;
  uint32_t a = start[0], b = start[1], c = start[2], d = start[3];
  uint32_t e = start[4], f = start[5], g = start[6], h = start[7];
  for (int at = 0; at < 64; ++at) {
    const uint32_t first = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) +
                           kRounds[at] + words[at];
    const uint32_t second =
        (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
  }
  *state = {start[0] + a, start[1] + b, start[2] + c, start[3] + d,
            start[4] + e, start[5] + f, start[6] + g, start[7] + h};
}

inline std::string sha256(const std::vector<uint8_t>& bytes) {
  std::array<uint32_t, 8> state = {
      0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
  const size_t whole = bytes.size() / 64 * 64;
  for (size_t at = 0; at < whole; at += 64) sha256_block(&bytes[at], &state);
  std::vector<uint8_t> rest(bytes.begin() + std::ptrdiff_t(whole), bytes.end());
  rest.push_back(0x80);
  rest.resize(rest.size() > 56 ? 128 : 64);
  for (size_t at = 1; at <= 8; ++at) {
    rest[rest.size() - at] = uint8_t(uint64_t(bytes.size()) * 8 >> 8 * (at - 1));
  }
  for (size_t at = 0; at < rest.size(); at += 64) sha256_block(&rest[at], &state);
  std::string text;
  for (uint32_t word : state) {
    for (int at = 28; at >= 0; at -= 4) text += "0123456789abcdef"[word >> at & 15];
  }
  return text;
}

// --- The manifest.

struct Info {
  std::string name, dtype;
  std::vector<std::string> shape;  // a size, or the name of a free axis
};

inline bool is_free(const std::string& axis) { return !std::isdigit((unsigned char)axis[0]); }

struct Manifest {
  std::string artifact, device = "cpu";
  std::vector<std::string> cpu_features;
  std::vector<Info> inputs, outputs;
  int64_t artifact_bytes = -1;  // unknown
  std::string artifact_sha256;
  double min_sqnr_db = 30.0;
};

namespace json = tvm::ffi::json;

inline tvm::ffi::Any find(const json::Object& object, const std::string& key) {
  const auto found = object.find(tvm::ffi::String(key));
  return found == object.end() ? tvm::ffi::Any() : (*found).second;
}

inline std::vector<Info> infos(const tvm::ffi::Any& list) {
  std::vector<Info> found;
  for (const tvm::ffi::Any& item : list.cast<json::Array>()) {
    const auto object = item.cast<json::Object>();
    Info info;
    info.name = find(object, "name").cast<std::string>();
    info.dtype = find(object, "dtype").cast<std::string>();
    for (const tvm::ffi::Any& size : find(object, "shape").cast<json::Array>()) {
      const auto number = size.as<int64_t>();
      info.shape.push_back(number ? std::to_string(*number) : size.cast<std::string>());
      const bool named = !info.shape.back().empty() && is_free(info.shape.back());
      if (number ? *number < 0 : !named) fail("the shape of " + info.name + " is impossible");
    }
    type_named(info.dtype, info.name);
    found.push_back(std::move(info));
  }
  return found;
}

inline Manifest manifest_of(const json::Object& data) {
  Manifest manifest;
  manifest.artifact = find(data, "artifact").cast<std::string>();
  manifest.inputs = infos(find(data, "inputs"));
  manifest.outputs = infos(find(data, "outputs"));
  const auto engine = find(data, "engine").cast<json::Object>();
  if (find(engine, "name").cast<std::string>() != "tvm") fail("its format is not tvm");
  const auto options = find(engine, "options").cast<json::Object>();
  const auto features = find(options, "cpu_features"), device = find(options, "device");
  if (device != nullptr) manifest.device = device.cast<std::string>();
  if (features != nullptr) {
    for (const tvm::ffi::Any& name : features.cast<json::Array>()) {
      manifest.cpu_features.push_back(name.cast<std::string>());
    }
  }
  const auto limit = find(find(data, "parity").cast<json::Object>(), "vectors_min_sqnr_db");
  if (limit != nullptr) manifest.min_sqnr_db = limit.cast<double>();
  const auto file = find(find(data, "files").cast<json::Object>(), manifest.artifact);
  if (file != nullptr) {
    manifest.artifact_bytes = find(file.cast<json::Object>(), "bytes").cast<int64_t>();
    manifest.artifact_sha256 = find(file.cast<json::Object>(), "sha256").cast<std::string>();
  }
  const std::string path = "/" + manifest.artifact + "/";
  if (manifest.artifact[0] == '/' || path.find("/../") != std::string::npos) {
    fail("its artifact lies outside of it");
  }
  return manifest;
}

inline Manifest read_manifest(const std::string& folder) {
  const std::string file = folder + "/manifest.json";
  const std::vector<uint8_t> bytes = read_file(file);
  tvm::ffi::String problem;
  const auto value = json::Parse(std::string(bytes.begin(), bytes.end()), &problem);
  std::string reason(problem);
  if (reason.empty()) {
    try {
      return manifest_of(value.cast<json::Object>());
    } catch (const tvm::ffi::Error& error) {
      reason = error.message();
    } catch (const std::runtime_error& error) {
      reason = error.what();
    }
  }
  fail(file + " cannot be used (" + reason + "); build the bundle again");
}

// Call TVM; its errors become one line of ours.
template <typename Step>
auto guarded(const std::string& what, const Step& step) -> decltype(step()) {
  try {
    return step();
  } catch (const tvm::ffi::Error& error) {
    const std::string message = error.message();
    fail(what + ": " + message.substr(0, message.find('\n')));
  }
}

template <typename... Arguments>
tvm::ffi::Any call(const char* name, Arguments&&... arguments) {
  const auto function = tvm::ffi::Function::GetGlobal(name);
  if (!function) fail(std::string(name) + " is not in libtvm_runtime.so; use the bundle's own lib/");
  return (*function)(std::forward<Arguments>(arguments)...);
}

inline void check_cpus(const std::vector<int>& cpus) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  std::vector<int> usable;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) usable.push_back(cpu);
  }
  const auto text = [](int cpu) { return std::to_string(cpu); };
  for (int cpu : cpus) {
    if (std::find(usable.begin(), usable.end(), cpu) != usable.end()) continue;
    fail("CPU " + text(cpu) + " cannot be used; this process may use: " + join(usable, text));
  }
}

// TVM's pool has as many workers as CPUs are named to it; without TVM_BIND_THREADS=0 it pins them, from
// CPU 0 upwards if none were asked for (tvm/src/runtime/threading_backend.cc).
inline void configure_threads(const Options& options) {
  check_cpus(options.cpus);
  const int pinned = int(options.cpus.size());
  const int threads = options.threads == 0 ? std::max(1, pinned) : options.threads;
  if (threads < 1) fail("the number of threads must be at least 1");
  if (pinned != 0 && threads != pinned) {
    fail("the number of threads and of CPUs to pin them to must be the same");
  }
  tvm::ffi::Array<tvm::ffi::String> names;
  for (int index = 0; index < threads; ++index) {
    names.push_back(std::to_string(options.cpus.empty() ? index : options.cpus[size_t(index)]));
  }
  if (options.cpus.empty()) {
    setenv("TVM_BIND_THREADS", "0", 1);
  } else {
    unsetenv("TVM_BIND_THREADS");
  }
  constexpr int one_core_per_thread = -2, unpinned = 0;
  call("runtime.config_threadpool", options.cpus.empty() ? unpinned : one_core_per_thread, threads,
       names);
}

inline DLDevice open_device(const std::string& name) {
  if (name == "cpu") return DLDevice{kDLCPU, 0};
  if (name != "cuda") fail("there is no device " + name + "; choose cpu or cuda");
  if (!dlopen("libtvm_runtime_cuda.so", RTLD_NOW | RTLD_GLOBAL)) {
    fail(std::string("CUDA cannot be used (") + dlerror() +
         "); install NVIDIA's driver and the CUDA 13 runtime, or use a bundle for the CPU");
  }
  const DLDevice device{kDLCUDA, 0};
  constexpr int exists = 0;
  const auto found = guarded("CUDA cannot be used", [&] {
    return call("runtime.GetDeviceAttr", int(device.device_type), device.device_id, exists);
  });
  if (found == nullptr || found.cast<int64_t>() == 0) {
    fail("CUDA finds no GPU; check nvidia-smi, or use a bundle for the CPU");
  }
  return device;
}

}  // namespace detail

// A loaded bundle. Not for several threads at a time; any number of models may be alive.
class Model {
 public:
  // `path`: the bundle's folder, or a library alone, whose inputs are then not checked.
  explicit Model(const std::string& path, const Options& options = Options()) : path_(path) {
    std::string library = path;
    is_bundle_ = path.size() < 3 || path.compare(path.size() - 3, 3, ".so") != 0;
    if (is_bundle_) {
      manifest_ = detail::read_manifest(path);
      library = path + "/" + manifest_.artifact;
    }
    check(library, options.verify);
    detail::configure_threads(options);
    device_ = detail::open_device(options.device.empty() ? manifest_.device : options.device);
    load(library);
  }

  const detail::Manifest& manifest() const { return manifest_; }

  // Inputs and outputs in the manifest's order.
  std::vector<Tensor> run(const std::vector<Tensor>& inputs) {
    if (is_bundle_) check_inputs(inputs);
    const std::string failed = path_ + " failed";
    return detail::guarded(failed, [&] {
      feed(inputs);
      std::vector<tvm::ffi::AnyView> arguments(fed_.begin(), fed_.end());
      tvm::ffi::Any result;
      main_.CallPacked(arguments.data(), int32_t(arguments.size()), &result);
      return fetch(result);
    });
  }

  Tensors run(const Tensors& inputs) {
    if (!is_bundle_) detail::fail(path_ + " has no manifest with names; pass the inputs in order");
    const std::vector<Tensor> outputs = run(ordered(inputs));
    Tensors named;
    for (size_t at = 0; at < outputs.size(); ++at) named[manifest_.outputs[at].name] = outputs[at];
    return named;
  }

  // The inputs in the manifest's order.
  std::vector<Tensor> ordered(const Tensors& inputs) const {
    std::vector<Tensor> found;
    std::vector<std::string> names;
    for (const detail::Info& info : manifest_.inputs) {
      names.push_back(info.name);
      if (inputs.count(info.name)) found.push_back(inputs.at(info.name));
    }
    if (found.size() != names.size() || inputs.size() != names.size()) {
      const auto same = [](const std::string& name) { return name; };
      detail::fail("the inputs are named " + detail::join(names, same) + ", and not " +
                   detail::join(inputs, [](const auto& item) { return item.first; }));
    }
    return found;
  }

 private:
  void check(const std::string& library, bool verify) const {
    detail::check_library(library);
    detail::check_cpu(manifest_.cpu_features);
    if (!verify || manifest_.artifact_bytes < 0) return;
    const std::vector<uint8_t> bytes = detail::read_file(library);
    if (int64_t(bytes.size()) != manifest_.artifact_bytes ||
        detail::sha256(bytes) != manifest_.artifact_sha256) {
      detail::fail(library + " is not what the manifest says; copy the bundle again");
    }
  }

  void load(const std::string& library) {
    constexpr int pooled = 2;
    const std::string failed = library + " cannot be loaded; copy or build the bundle again";
    detail::guarded(failed, [&] {
      const auto load_vm = function(tvm::ffi::Module::LoadFromFile(library), "vm_load_executable");
      const auto vm = load_vm().cast<tvm::ffi::Module>();
      const auto initialize = function(vm, "vm_initialization");
      const int type = int(device_.device_type);
      if (type == kDLCPU) {
        initialize(type, 0, pooled);
      } else {
        initialize(type, device_.device_id, pooled, int(kDLCPU), 0, pooled);
      }
      main_ = function(vm, "main");  // keeps the machine and its library alive
    });
  }

  tvm::ffi::Function function(const tvm::ffi::Module& module, const char* name) const {
    const auto found = module->GetFunction(name);
    if (!found) detail::fail(path_ + " is no model of qcompile: it has no function " + name);
    return *found;
  }

  void check_inputs(const std::vector<Tensor>& inputs) const {
    if (inputs.size() != manifest_.inputs.size()) {
      detail::fail("the model has " + std::to_string(manifest_.inputs.size()) + " inputs, not " +
                   std::to_string(inputs.size()));
    }
    std::map<std::string, int64_t> axes;
    for (size_t at = 0; at < inputs.size(); ++at) {
      check_input(inputs[at], manifest_.inputs[at], &axes);
    }
  }

  static void check_input(const Tensor& input, const detail::Info& info,
                          std::map<std::string, int64_t>* axes) {
    bool fits = input.dtype == info.dtype && input.shape.size() == info.shape.size();
    for (size_t at = 0; fits && at < info.shape.size(); ++at) {
      const std::string& axis = info.shape[at];
      const int64_t size = input.shape[at];
      const int64_t wanted = detail::is_free(axis) ? axes->emplace(axis, size).first->second
                                                   : std::stoll(axis);
      fits = size == wanted;
    }
    if (!fits) {
      detail::fail("input " + info.name + " must be " + info.dtype + "[" +
                   detail::join(info.shape, [](const std::string& axis) { return axis; }) +
                   "], not " + input.dtype + detail::text_of(input.shape));
    }
    const size_t item = detail::type_named(input.dtype, info.name).size;
    if (input.bytes.size() != detail::byte_count(input.shape, item, info.name)) {
      detail::fail("input " + info.name + " has another number of bytes than its shape says");
    }
  }

  // Copy to memory that is aligned as TVM's kernels expect, made once for each shape.
  void feed(const std::vector<Tensor>& inputs) {
    fed_.resize(inputs.size());
    for (size_t at = 0; at < inputs.size(); ++at) {
      const tvm::ffi::Shape shape(inputs[at].shape);
      const DLDataType dtype = tvm::ffi::StringToDLDataType(inputs[at].dtype);
      tvm::ffi::Tensor& tensor = fed_[at];
      if (!tensor.defined() || tensor.dtype() != dtype ||
          !std::equal(tensor.shape().begin(), tensor.shape().end(), shape.begin(), shape.end())) {
        tensor = detail::call("runtime.TVMTensorAllocWithScope", shape, dtype, device_, nullptr)
                     .cast<tvm::ffi::Tensor>();
      }
      const std::vector<uint8_t>& bytes = inputs[at].bytes;
      detail::call("runtime.TVMTensorCopyFromBytes", tensor,
                   static_cast<void*>(const_cast<uint8_t*>(bytes.data())), int64_t(bytes.size()));
    }
  }

  std::vector<Tensor> fetch(const tvm::ffi::Any& result) const {
    std::vector<Tensor> outputs;
    if (const auto single = result.as<tvm::ffi::Tensor>()) {
      outputs.push_back(fetch_one(*single));
    } else {
      for (const auto& tensor : result.cast<tvm::ffi::Array<tvm::ffi::Tensor>>()) {
        outputs.push_back(fetch_one(tensor));
      }
    }
    if (is_bundle_ && outputs.size() != manifest_.outputs.size()) {
      detail::fail(path_ + " gave " + std::to_string(outputs.size()) +
                   " outputs, and its manifest names " + std::to_string(manifest_.outputs.size()));
    }
    return outputs;
  }

  static Tensor fetch_one(const tvm::ffi::Tensor& tensor) {
    Tensor output{std::string(tvm::ffi::DLDataTypeToString(tensor.dtype())), {}, {}};
    output.shape.assign(tensor.shape().begin(), tensor.shape().end());
    const size_t item = detail::type_named(output.dtype, "an output").size;
    output.bytes.resize(detail::byte_count(output.shape, item, "an output"));
    detail::call("runtime.TVMTensorCopyToBytes", tensor, static_cast<void*>(output.bytes.data()),
                 int64_t(output.bytes.size()));
    return output;
  }

  std::string path_;
  bool is_bundle_ = true;
  detail::Manifest manifest_;
  DLDevice device_{kDLCPU, 0};
  tvm::ffi::Function main_;
  std::vector<tvm::ffi::Tensor> fed_;
};

}  // namespace qcompile
