"""Parts of the Swift package that only some models need; ``<<name>>`` as in the templates."""

FLOAT16_GUARD = """
#if (os(macOS) || targetEnvironment(macCatalyst)) && arch(x86_64)
    #error("this model has Float16 inputs or outputs, which Intel Macs lack; build for arm64 only")
#endif
"""

IMAGE_INIT = """
    /// Takes images of any size; they are scaled to the model's.
    public init(<<image_parameters>>) throws {
<<image_assignments>>
    }
"""
IMAGE_FUNCTION = """
/// Returns an image in the model's size.
private func qcompilePixels(
    _ image: CGImage, _ width: Int, _ height: Int, _ format: OSType
) throws -> CVPixelBuffer {
    let value = try MLFeatureValue(
        cgImage: image, pixelsWide: width, pixelsHigh: height, pixelFormatType: format, options: nil
    )
    guard let pixels = value.imageBufferValue else {
        throw <<model>>Error(description: "the image cannot be scaled")
    }
    return pixels
}
"""

ARRAY_FUNCTION = """
/// Returns an output, in the type that it is declared with, whatever type Core ML computed it in.
private func qcompileOutput<Scalar: MLShapedArrayScalar>(
    _ found: MLFeatureProvider, _ name: String
) throws -> MLShapedArray<Scalar> {
    guard let array = found.featureValue(for: name)?.multiArrayValue else {
        throw <<model>>Error(description: "the model returned no array \\(name)")
    }
    if array.dataType == Scalar.multiArrayDataType {
        return MLShapedArray<Scalar>(array)
    }
    return MLShapedArray<Scalar>(converting: array)
}
"""
COMPARE_ARRAYS = """
    private func compare<Scalar: MLShapedArrayScalar & BinaryFloatingPoint>(
        _ name: String, _ found: MLShapedArray<Scalar>, _ expected: Vectors
    ) throws {
        try compare(name, found.shape, found.scalars.map { Double($0) }, expected)
    }

    private func compare<Scalar: MLShapedArrayScalar & BinaryInteger>(
        _ name: String, _ found: MLShapedArray<Scalar>, _ expected: Vectors
    ) throws {
        try compare(name, found.shape, found.scalars.map { Double($0) }, expected)
    }
"""

LABELS = """
    /// What the classes are called, in order.
    public static let labels: [String] = [
<<label_literals>>
    ]
"""
CLASSIFIER_PROPERTIES = """\
    /// The class of the highest probability.
    public let classLabel: String
    /// Of every class, by its label.
    public let probabilities: [String: Double]
    /// The classes, the most probable first.
    public var ranked: [(label: String, probability: Double)] {
        probabilities.map { (label: $0.key, probability: $0.value) }
            .sorted { $0.probability > $1.probability }
    }"""
CLASSIFIER_ASSIGNMENTS = """\
        guard let label = found.featureValue(for: <<label_key>>), label.type == .string,
            let byLabel = found.featureValue(for: <<probabilities_key>>)?.dictionaryValue,
            let probabilities = byLabel as? [String: Double]
        else {
            throw <<model>>Error(description: "the model returned no class with probabilities")
        }
        self.classLabel = label.stringValue
        self.probabilities = probabilities"""
COMPARE_PROBABILITIES = """
    private func compare(
        _ name: String, _ found: <<model>>Output, _ expected: Vectors
    ) throws {
        let values = try <<model>>.labels.map { label in
            try XCTUnwrap(found.probabilities[label], "probability of \\(label)")
        }
        XCTAssertEqual(found.probabilities.count, values.count, "classes")
        XCTAssertEqual(found.probabilities[found.classLabel], values.max(), "the class's probability")
        try compare(name, [1, values.count], values, expected)
    }
"""
