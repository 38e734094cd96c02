import XCTest

import DigitReader

final class DigitReaderTests: XCTestCase {
    func testAColumnIsAOne() async throws {
        let row: [Float] = [0, 0, 0, 1, 1, 0, 0, 0]
        let pixels = Array(repeating: row, count: 8).flatMap { $0 }
        let found = try await DigitReader().digit(pixels)
        XCTAssertEqual(found, 1)
    }
}
