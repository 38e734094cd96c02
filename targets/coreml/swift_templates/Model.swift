// Written by qcompile.

import CoreGraphics
import CoreML
import CoreVideo
import Foundation
<<float16_guard>>
/// What `<<model>>` takes. Arrays are in rows, the last axis first; a named size is free.
public struct <<model>>Input {
<<input_properties>>

    public init(<<input_parameters>>) {
<<input_assignments>>
    }
<<image_init>>
    func qcompileFeatures() throws -> MLFeatureProvider {
        try MLDictionaryFeatureProvider(dictionary: [
<<input_features>>
        ])
    }
}

/// What `<<model>>` returns.
public struct <<model>>Output {
<<output_properties>>

    init(_ found: MLFeatureProvider) throws {
<<output_assignments>>
    }
}

/// What went wrong, in one sentence.
public struct <<model>>Error: Error, CustomStringConvertible {
    public let description: String
}

/// The model. Use one instance from one thread at a time.
public final class <<model>> {
    /// The model as Core ML has it.
    public let model: MLModel
<<labels>>
    /// Loads the model that comes with this package.
    public convenience init(computeUnits: MLComputeUnits = .all) async throws {
        try await self.init(contentsOf: <<model>>.compiledModel(), computeUnits: computeUnits)
    }

    /// Loads a compiled model (.mlmodelc), as `compiledModel()` gives it.
    public init(contentsOf compiled: URL, computeUnits: MLComputeUnits = .all) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
    }

    /// Returns the compiled model: the one in the resources if the build compiled it, else a new one in
    /// a temporary folder. To compile once, keep that one and give it to `init(contentsOf:)`.
    public static func compiledModel() async throws -> URL {
        if let compiled = Bundle.module.url(forResource: "model", withExtension: "mlmodelc") {
            return compiled
        }
        guard let package = Bundle.module.url(forResource: "model", withExtension: "mlpackage") else {
            throw <<model>>Error(description: "model.mlpackage is not among the resources")
        }
        return try await MLModel.compileModel(at: package)
    }

    /// Runs the model.
    public func predict(_ input: <<model>>Input) throws -> <<model>>Output {
        try <<model>>Output(model.prediction(from: input.qcompileFeatures()))
    }
}
<<array_function>><<image_function>>