// run [BUNDLE]: check a bundle's vectors and measure its latency, or run it on arrays of yours.
//
// Exit codes: 0 fine, 1 an output differs from its vector, 2 wrong bundle, device, input or option.
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <iostream>
#include <optional>

#include "qcompile.hpp"

namespace {

using qcompile::Tensor;
using qcompile::Tensors;
namespace json = tvm::ffi::json;

constexpr const char* kUsage =
    "usage: run [BUNDLE] [--input F.npz] [--output F.npz] [--calls N] [--threads N] [--cpus 0,2] "
    "[--json]\n"
    "  BUNDLE    folder; default: where this program lies\n"
    "  --input   arrays by input name; without it the bundle's vectors are run and compared\n"
    "  --output  write the outputs there\n"
    "  --calls   timed calls, default 10; 0 measures nothing\n"
    "  --threads default 1, or one for each CPU of --cpus\n"
    "  --cpus    pin the threads to these CPUs\n"
    "  --json    print one JSON object\n";

struct Arguments {
  std::string bundle, input, output;
  int calls = 10;
  bool json = false;
  qcompile::Options options;
};

int number(const std::string& option, const std::string& text) {
  const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
  if (text.empty() || text.size() > 8 || !digits) {
    qcompile::detail::fail(option + " needs a whole number, not '" + text + "'");
  }
  return std::stoi(text);
}

std::vector<int> numbers(const std::string& option, const std::string& text) {
  std::vector<int> found;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    found.push_back(number(option, text.substr(at, end - at)));
    at = end + 1;
  }
  return found;
}

std::string own_folder() {
  std::string path(4096, '\0');
  const ssize_t length = readlink("/proc/self/exe", path.data(), path.size());
  path.resize(length < 0 ? 0 : size_t(length));
  return path.substr(0, path.rfind('/'));
}

void set_option(const std::string& option, const std::string& value, Arguments* arguments) {
  if (option == "--input") {
    arguments->input = value;
  } else if (option == "--output") {
    arguments->output = value;
  } else if (option == "--calls") {
    arguments->calls = number(option, value);
  } else if (option == "--threads") {
    arguments->options.threads = number(option, value);
  } else if (option == "--cpus") {
    arguments->options.cpus = numbers(option, value);
  } else {
    qcompile::detail::fail("there is no option " + option + "; see run --help");
  }
}

Arguments parse(const std::vector<std::string>& given) {
  Arguments arguments;
  for (size_t at = 0; at < given.size(); ++at) {
    if (given[at] == "--json") {
      arguments.json = true;
    } else if (given[at].compare(0, 1, "-") == 0) {
      const std::string problem = given[at] + " needs a value; see run --help";
      if (at + 1 == given.size()) qcompile::detail::fail(problem);
      set_option(given[at], given[at + 1], &arguments);
      ++at;
    } else if (arguments.bundle.empty()) {
      arguments.bundle = given[at];
    } else {
      qcompile::detail::fail("give one bundle, not " + arguments.bundle + " and " + given[at]);
    }
  }
  if (arguments.bundle.empty()) arguments.bundle = own_folder();
  return arguments;
}

// IEEE 754 binary16, exactly.
double half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = std::ldexp(fraction + (exponent ? 1024 : 0), (exponent ? exponent : 1) - 25);
  if (exponent == 31) value = fraction ? NAN : INFINITY;
  return bits >> 15 ? -value : value;
}

double value_at(const Tensor& tensor, size_t index) {
  if (tensor.dtype == "float16") return half(tensor.data<uint16_t>()[index]);
  if (tensor.dtype == "float32") return double(tensor.data<float>()[index]);
  return tensor.data<double>()[index];
}

struct Comparison {
  std::string name;
  bool passed = true;
  bool equal = true;
  double sqnr_db = INFINITY, largest = 0;
  std::string problem;
};

// The rules of runtime/vectors.py: an infinity or NaN must stand where it stood; floats need the power
// of the expected values over that of the difference, in dB; integers and bools must be equal.
Comparison compare_floats(Comparison result, const Tensor& expected, const Tensor& found,
                          double limit) {
  double power = 0, error = 0;
  const size_t item = qcompile::detail::type_named(expected.dtype, result.name).size;
  const size_t count = expected.bytes.size() / item;
  for (size_t index = 0; index < count; ++index) {
    const double wanted = value_at(expected, index), value = value_at(found, index);
    if (std::isfinite(wanted)) power += wanted * wanted;
    if (wanted == value || (std::isnan(wanted) && std::isnan(value))) continue;
    const double difference = std::isfinite(wanted - value) ? std::abs(wanted - value) : INFINITY;
    error += difference * difference;
    result.largest = std::max(result.largest, difference);
  }
  result.equal = error == 0;
  if (!result.equal) result.sqnr_db = 10 * std::log10(power / error);
  result.passed = result.equal || result.sqnr_db >= limit;
  return result;
}

Comparison compare(const std::string& name, const Tensor& expected, const Tensor& found,
                   double limit) {
  Comparison result;
  result.name = name;
  if (expected.dtype != found.dtype || expected.shape != found.shape) {
    result.passed = result.equal = false;
    result.problem = "is " + found.dtype + qcompile::detail::text_of(found.shape) + ", not " +
                     expected.dtype + qcompile::detail::text_of(expected.shape);
    return result;
  }
  if (expected.dtype.compare(0, 5, "float") == 0) {
    return compare_floats(result, expected, found, limit);
  }
  result.passed = result.equal = expected.bytes == found.bytes;
  if (!result.passed) result.problem = "differs in an integer";
  return result;
}

std::vector<Comparison> compare_all(const Tensors& expected, const Tensors& found, double limit) {
  std::vector<Comparison> results;
  for (const auto& [name, tensor] : expected) {
    if (!found.count(name)) qcompile::detail::fail("vectors/outputs.npz names no output: " + name);
    results.push_back(compare(name, tensor, found.at(name), limit));
  }
  if (results.size() != found.size()) {
    qcompile::detail::fail("vectors/outputs.npz lacks an output; build the bundle again");
  }
  return results;
}

// The first sample, where the model's batch is free; else all.
std::vector<Tensor> first_sample(const qcompile::Model& model, std::vector<Tensor> inputs) {
  for (size_t at = 0; at < inputs.size(); ++at) {
    const auto& shape = model.manifest().inputs[at].shape;
    Tensor& input = inputs[at];
    if (shape.empty() || !qcompile::detail::is_free(shape[0]) || input.shape[0] < 2) continue;
    input.bytes.resize(input.bytes.size() / size_t(input.shape[0]));
    input.shape[0] = 1;
  }
  return inputs;
}

struct Latency {
  double median_us, p90_us;
};

Latency measure(qcompile::Model* model, const std::vector<Tensor>& inputs, int calls) {
  model->run(inputs);
  std::vector<double> times;
  for (int index = 0; index < calls; ++index) {
    const auto start = std::chrono::steady_clock::now();
    model->run(inputs);
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    times.push_back(took.count());
  }
  std::sort(times.begin(), times.end());
  const double last = double(times.size() - 1);
  return {times[size_t(0.5 * last + 0.5)], times[size_t(0.9 * last + 0.5)]};
}

tvm::ffi::Any finite(double value) {
  return std::isfinite(value) ? tvm::ffi::Any(value) : tvm::ffi::Any(nullptr);
}

struct Report {
  std::vector<Comparison> compared;
  Tensors outputs;
  double limit_db = 0;
  std::optional<Latency> latency;

  bool passed() const {
    const auto is_passed = [](const Comparison& one) { return one.passed; };
    return std::all_of(compared.begin(), compared.end(), is_passed);
  }

  void print_lines() const {
    for (const Comparison& one : compared) {
      std::cout << (one.passed ? "ok  " : "FAILED  ") << one.name << ": ";
      if (!one.problem.empty()) {
        std::cout << one.problem << "\n";
      } else if (one.equal) {
        std::cout << "equal\n";
      } else {
        std::cout << one.sqnr_db << " dB, needs " << limit_db << " dB\n";
      }
    }
    for (const auto& [name, tensor] : outputs) {
      if (!compared.empty()) break;
      std::cout << name << ": " << tensor.dtype << qcompile::detail::text_of(tensor.shape) << "\n";
    }
    if (latency) {
      std::cout << "latency: median " << latency->median_us << " us, p90 " << latency->p90_us
                << " us\n";
    }
  }

  void print_json() const {
    json::Object object, results;
    for (const Comparison& one : compared) {
      json::Object result;
      result.Set("passed", one.passed);
      result.Set("equal", one.equal);
      result.Set("sqnr_db", finite(one.sqnr_db));
      result.Set("largest", finite(one.largest));
      results.Set(one.name, result);
    }
    object.Set("outputs", results);
    object.Set("passed", passed());
    object.Set("median_us", latency ? finite(latency->median_us) : finite(NAN));
    object.Set("p90_us", latency ? finite(latency->p90_us) : finite(NAN));
    std::cout << std::string(json::Stringify(object)) << "\n";
  }
};

Report execute(const Arguments& arguments) {
  qcompile::Model model(arguments.bundle, arguments.options);
  const bool check = arguments.input.empty();
  const std::string vectors = arguments.bundle + "/vectors/";
  const Tensors inputs = qcompile::read_npz(check ? vectors + "inputs.npz" : arguments.input);
  Report report;
  report.limit_db = model.manifest().min_sqnr_db;
  report.outputs = model.run(inputs);
  if (check) {
    const Tensors expected = qcompile::read_npz(vectors + "outputs.npz");
    report.compared = compare_all(expected, report.outputs, report.limit_db);
  }
  if (!arguments.output.empty()) qcompile::write_npz(arguments.output, report.outputs);
  if (arguments.calls > 0) {
    const auto sample = first_sample(model, model.ordered(inputs));
    report.latency = measure(&model, sample, arguments.calls);
  }
  return report;
}

}  // namespace

int main(int count, char** values) {
  const std::vector<std::string> given(values + 1, values + count);
  if (std::find(given.begin(), given.end(), "--help") != given.end()) {
    std::cout << kUsage;
    return 0;
  }
  try {
    const Arguments arguments = parse(given);
    const Report report = execute(arguments);
    arguments.json ? report.print_json() : report.print_lines();
    return report.passed() ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
