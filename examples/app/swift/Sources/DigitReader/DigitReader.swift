import CoreML
import ResnetModel

/// Reads a digit from eight rows of eight pixels.
public struct DigitReader {
    private let model: Resnet

    public init() async throws {
        model = try await Resnet()
    }

    /// Returns the most likely digit of 64 pixels, which are 0 to 1.
    public func digit(_ pixels: [Float]) throws -> Int {
        let image = MLShapedArray<Float>(scalars: pixels, shape: [1, 1, 8, 8])
        let scores = try model.predict(ResnetInput(image: image)).output.scalars
        return scores.indices.max { scores[$0] < scores[$1] }!
    }
}
