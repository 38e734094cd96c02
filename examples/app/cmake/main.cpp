// kiosk MODEL INPUT.npy: prints the most likely class of each sample.
#include <algorithm>
#include <exception>
#include <iostream>

#include "qcompile.hpp"

int main(int count, char** values) {
  if (count != 3) {
    std::cerr << "usage: kiosk MODEL INPUT.npy\n";
    return 2;
  }
  try {
    qcompile::Model model(values[1]);
    const qcompile::Tensor scores = model.run({qcompile::read_npy(values[2])}).front();
    const int64_t samples = scores.shape[0], classes = scores.shape[1];
    for (int64_t sample = 0; sample < samples; ++sample) {
      const float* row = scores.data<float>() + sample * classes;
      std::cout << std::max_element(row, row + classes) - row << "\n";
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
