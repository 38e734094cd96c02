// Byte streams for building the TVM runtime from the sources that its Python package ships.
//
// The package holds the runtime's .cc files, but not the headers of `tvm::support` that they include.
// This file stands for all of them: the interface that those sources call, and the layout in which
// `export_library` writes an executable: little-endian scalars, and for strings, lists and maps a
// 64-bit count before the elements. It is compiled into libtvm_runtime.so for other architectures
// (targets/tvm/libraries.py) and is no part of a bundle.
#pragma once

#include <dlpack/dlpack.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/endian.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

static_assert(TVM_FFI_IO_NO_ENDIAN_SWAP, "scalars are stored as they lie in memory");

namespace tvm {
namespace support {

template <typename T, typename = void>
struct Serializer;

class Stream {
 public:
  virtual ~Stream() = default;
  virtual size_t Read(void* to, size_t bytes) = 0;
  virtual size_t Write(const void* from, size_t bytes) = 0;

  template <typename T>
  bool Read(T* value) {
    return Serializer<T>::Read(this, value);
  }

  template <typename T>
  void Write(const T& value) {
    Serializer<T>::Write(this, value);
  }

  template <typename T>
  bool ReadArray(T* values, size_t count) {
    return std::all_of(values, values + count, [this](T& value) { return Read<T>(&value); });
  }

  template <typename T>
  void WriteArray(const T* values, size_t count) {
    std::for_each(values, values + count, [this](const T& value) { Write<T>(value); });
  }
};

template <typename T>
constexpr bool kIsScalar = std::is_arithmetic_v<T> || std::is_enum_v<T> ||
                           std::is_same_v<T, DLDataType> || std::is_same_v<T, DLDevice>;
template <typename T, typename = void>
constexpr bool kIsMap = false;
template <typename T>
constexpr bool kIsMap<T, std::void_t<typename T::mapped_type>> = true;
template <typename T>
constexpr bool kIsString = std::is_same_v<T, std::string> || std::is_same_v<T, ffi::String>;

// The sources specialize this for their structures; this one knows scalars, text, lists and maps.
template <typename T, typename>
struct Serializer {
  static constexpr bool enabled = true;

  static void Write(Stream* stream, const T& value) {
    if constexpr (kIsScalar<T>) {
      stream->Write(&value, sizeof(T));
    } else {
      stream->Write(static_cast<uint64_t>(value.size()));
      if constexpr (kIsString<T>) {
        stream->Write(value.data(), value.size());
      } else {
        for (const auto& element : value) WriteElement(stream, element);
      }
    }
  }

  static bool Read(Stream* stream, T* value) {
    if constexpr (kIsScalar<T>) {
      return stream->Read(value, sizeof(T)) == sizeof(T);
    } else {
      uint64_t count = 0;
      if (!stream->Read(&count)) return false;
      *value = T();
      if constexpr (kIsString<T>) {
        return ReadText(stream, count, value);
      } else {
        for (; count > 0; --count) {
          if (!ReadElement(stream, value)) return false;
        }
        return true;
      }
    }
  }

 private:
  template <typename E>
  static void WriteElement(Stream* stream, const E& element) {
    if constexpr (kIsMap<T>) {
      stream->Write(element.first);
      stream->Write(element.second);
    } else {
      stream->Write<typename T::value_type>(element);
    }
  }

  static bool ReadElement(Stream* stream, T* value) {
    if constexpr (kIsMap<T>) {
      typename T::key_type key;
      typename T::mapped_type mapped;
      if (!stream->Read(&key) || !stream->Read(&mapped)) return false;
      if constexpr (std::is_base_of_v<ffi::ObjectRef, T>) {
        value->Set(key, mapped);
      } else {
        value->emplace(std::move(key), std::move(mapped));
      }
    } else {
      typename T::value_type element;
      if (!stream->Read(&element)) return false;
      value->push_back(std::move(element));
    }
    return true;
  }

  // In pieces: a count from a damaged file must not allocate more than the file holds.
  static bool ReadText(Stream* stream, uint64_t count, T* value) {
    std::string text;
    char piece[4096];
    while (count > 0) {
      const size_t wanted = std::min<uint64_t>(count, sizeof(piece));
      if (stream->Read(piece, wanted) != wanted) return false;
      text.append(piece, wanted);
      count -= wanted;
    }
    *value = T(std::move(text));
    return true;
  }
};

class BytesInStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  BytesInStream(const void* data, size_t bytes)
      : next_(static_cast<const char*>(data)), left_(bytes) {}
  template <typename Bytes>
  explicit BytesInStream(const Bytes& bytes) : BytesInStream(bytes.data(), bytes.size()) {}

  size_t Read(void* to, size_t bytes) override {
    const size_t taken = std::min(bytes, left_);
    std::copy_n(next_, taken, static_cast<char*>(to));
    next_ += taken;
    left_ -= taken;
    return taken;
  }
  size_t Write(const void*, size_t) override { return 0; }

 private:
  const char* next_;
  size_t left_;
};

class BytesOutStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit BytesOutStream(std::string* to) : to_(to) {}
  size_t Read(void*, size_t) override { return 0; }
  size_t Write(const void* from, size_t bytes) override {
    to_->append(static_cast<const char*>(from), bytes);
    return bytes;
  }

 private:
  std::string* to_;
};

// Tensors inside JSON are for compilers; a device reads none.
class Base64OutStream : public Stream {
 public:
  explicit Base64OutStream(Stream*) {}
  void Finish() {}
  void InitPosition() {}
  size_t Read(void*, size_t) override { return Refuse(); }
  size_t Write(const void*, size_t) override { return Refuse(); }

 private:
  static size_t Refuse() {
    TVM_FFI_THROW(RuntimeError) << "this build of the runtime keeps no tensors in JSON";
    TVM_FFI_UNREACHABLE();
  }
};
using Base64InStream = Base64OutStream;

struct NVTXScopedRange {
  template <typename Name>
  explicit NVTXScopedRange(const Name&) {}
};

inline bool IsNumber(const std::string& text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
}

}  // namespace support
}  // namespace tvm
