// swift-tools-version: 5.9
// The bundle is a Swift package itself, so that an app depends on it as on any other.
//   swift test --package-path ../build/digits-apple-a17-pro.qc --scratch-path .build/vectors
//   swift test

import PackageDescription

let package = Package(
    name: "DigitReader",
    platforms: [.macOS("15.0"), .iOS("18.0")],
    products: [.library(name: "DigitReader", targets: ["DigitReader"])],
    dependencies: [.package(name: "digits", path: "../build/digits-apple-a17-pro.qc")],
    targets: [
        .target(
            name: "DigitReader",
            dependencies: [.product(name: "ResnetModel", package: "digits")]
        ),
        .testTarget(name: "DigitReaderTests", dependencies: ["DigitReader"]),
    ]
)
