// swift-tools-version: 5.9
// Written by qcompile. The bundle is the package, so that it holds the model and the vectors once.
// In Xcode: File > Add Package Dependencies > Add Local. The test of the vectors: swift test

import PackageDescription

let package = Package(
    name: "<<module>>",
    platforms: [.macOS("<<macos>>"), .iOS("<<ios>>")],
    products: [.library(name: "<<module>>", targets: ["<<module>>"])],
    targets: [
        .target(
            name: "<<module>>",
            path: ".",
            exclude: ["manifest.json", "run.pyz", "swift/Tests", "vectors"],
            sources: ["swift/Sources"],
            resources: [.copy("model.mlpackage")]
        ),
        .testTarget(
            name: "<<module>>Tests",
            dependencies: ["<<module>>"],
            path: ".",
            exclude: ["manifest.json", "model.mlpackage", "run.pyz", "swift/Sources"],
            sources: ["swift/Tests"],
            resources: [.copy("vectors")]
        ),
    ]
)
