// Written by qcompile.

import CoreML
import XCTest

import <<module>>

/// The bundle's test vectors: each output must be as near to the expected one as the manifest asks.
final class VectorTests: XCTestCase {
    static let limit = <<limit>>

    func testOnCPU() async throws {
        try await check(.cpuOnly)
    }

    func testOnAllComputeUnits() async throws {
        try await check(.all)
    }

    private func check(_ units: MLComputeUnits) async throws {
        let inputs = try Vectors(name: "inputs")
        let expected = try Vectors(name: "outputs")
        let model = try await <<model>>(computeUnits: units)
        let found = try model.predict(
            <<model>>Input(
<<arguments>>
            )
        )
<<comparisons>>
    }
<<compare_function>>
    private func compare(
        _ name: String, _ shape: [Int], _ values: [Double], _ expected: Vectors
    ) throws {
        let reference = try expected.array(name)
        XCTAssertEqual(shape, reference.shape, "shape of \(name)")
        guard shape == reference.shape else { return }
        let measured = sqnr(values, reference.values)
        XCTAssertGreaterThanOrEqual(measured, VectorTests.limit, "SQNR of \(name) in dB")
    }
}

/// Power of the expected values over that of the difference, in dB. An infinity or NaN must stand where
/// it stood.
func sqnr(_ values: [Double], _ reference: [Double]) -> Double {
    var power = 0.0
    var error = 0.0
    for (value, expected) in zip(values, reference) {
        if expected.isFinite {
            power += expected * expected
        }
        if value == expected || (value.isNaN && expected.isNaN) {
            continue
        }
        let difference = value - expected
        guard difference.isFinite else { return -Double.infinity }
        error += difference * difference
    }
    if error == 0 {
        return Double.infinity
    }
    return power == 0 ? -Double.infinity : 10 * log10(power / error)
}
