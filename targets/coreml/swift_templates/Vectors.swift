// Written by qcompile.

import CoreML
import CoreVideo
import Foundation

/// What is wrong with a file of vectors.
struct VectorError: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) {
        self.description = description
    }
}

/// The arrays of an .npz whose entries are stored, not deflated: a zip archive (APPNOTE.TXT 6.3, 4.3.7)
/// of .npy files (numpy.lib.format).
struct Vectors {
    private var arrays: [String: NumberArray] = [:]

    /// Reads `vectors/NAME.npz` out of the resources.
    init(name: String) throws {
        let folder = Bundle.module.url(forResource: "vectors", withExtension: nil)
        guard let file = folder?.appendingPathComponent("\(name).npz") else {
            throw VectorError("the folder vectors is not among the resources")
        }
        try self.init(zip: [UInt8](Data(contentsOf: file)))
    }

    init(zip bytes: [UInt8]) throws {
        var place = 0
        while place + 30 <= bytes.count, littleEndian(bytes, place, 4) == 0x0403_4B50 {
            let method = littleEndian(bytes, place + 8, 2)
            let size = Int(littleEndian(bytes, place + 18, 4))
            let nameEnd = place + 30 + Int(littleEndian(bytes, place + 26, 2))
            let start = nameEnd + Int(littleEndian(bytes, place + 28, 2))
            guard method == 0, start + size <= bytes.count else {
                throw VectorError("an entry of the .npz is deflated or cut off")
            }
            let entry = String(decoding: bytes[(place + 30)..<nameEnd], as: UTF8.self)
            arrays[String(entry.dropLast(".npy".count))] =
                try NumberArray(npy: Array(bytes[start..<(start + size)]))
            place = start + size
        }
    }

    func array(_ name: String) throws -> NumberArray {
        guard let found = arrays[name] else {
            throw VectorError("the .npz has no array \(name)")
        }
        return found
    }

    func floating<Scalar: MLShapedArrayScalar & BinaryFloatingPoint>(
        _ name: String
    ) throws -> MLShapedArray<Scalar> {
        let found = try array(name)
        return MLShapedArray<Scalar>(scalars: found.values.map { Scalar($0) }, shape: found.shape)
    }

    func whole<Scalar: MLShapedArrayScalar & BinaryInteger>(
        _ name: String
    ) throws -> MLShapedArray<Scalar> {
        let found = try array(name)
        return MLShapedArray<Scalar>(scalars: found.values.map { Scalar($0) }, shape: found.shape)
    }

    /// Returns an array [1, channels, height, width] from 0 to 255 as an image.
    ///
    /// `order` has the channel of blue, of green and of red; an image in grey has one channel.
    func pixels(_ name: String, order: [Int]) throws -> CVPixelBuffer {
        let found = try array(name)
        let (height, width) = (found.shape[2], found.shape[3])
        let format = order.count == 1 ? kCVPixelFormatType_OneComponent8 : kCVPixelFormatType_32BGRA
        var made: CVPixelBuffer?
        CVPixelBufferCreate(kCFAllocatorDefault, width, height, format, nil, &made)
        guard let buffer = made else {
            throw VectorError("no pixel buffer of \(width) x \(height) can be made")
        }
        CVPixelBufferLockBaseAddress(buffer, [])
        defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
        guard let base = CVPixelBufferGetBaseAddress(buffer) else {
            throw VectorError("the pixel buffer has no memory")
        }
        let bytes = base.assumingMemoryBound(to: UInt8.self)
        let rowBytes = CVPixelBufferGetBytesPerRow(buffer)
        let step = order.count == 1 ? 1 : 4
        for y in 0..<height {
            for x in 0..<width {
                let pixel = y * rowBytes + x * step
                if step == 4 {
                    bytes[pixel + 3] = 255
                }
                for (index, channel) in order.enumerated() {
                    let value = found.values[(channel * height + y) * width + x]
                    bytes[pixel + index] = UInt8(min(max(value.rounded(), 0), 255))
                }
            }
        }
        return buffer
    }
}

/// An array of an .npy file, whatever its dtype.
struct NumberArray {
    let shape: [Int]
    let values: [Double]

    init(npy bytes: [UInt8]) throws {
        guard bytes.count > 12, bytes[0] == 0x93, bytes[1...5].elementsEqual("NUMPY".utf8) else {
            throw VectorError("an entry of the .npz is no .npy")
        }
        let headerStart = bytes[6] == 1 ? 10 : 12
        let start = headerStart + Int(littleEndian(bytes, 8, headerStart - 8))
        guard start <= bytes.count else {
            throw VectorError("the header of an .npy is cut off")
        }
        let header = String(decoding: bytes[headerStart..<start], as: UTF8.self)
        guard let dtype = between(header, "'descr': '", "'"), let sizes = between(header, "(", ")"),
            header.contains("'fortran_order': False")
        else {
            throw VectorError("the header of an .npy is not understood: \(header)")
        }
        shape = sizes.split(separator: ",").compactMap {
            Int($0.trimmingCharacters(in: .whitespaces))
        }
        values = try numbers(bytes, start, dtype)
        guard values.count == shape.reduce(1, *) else {
            throw VectorError("the data of an .npy is cut off")
        }
    }
}

private func numbers(_ bytes: [UInt8], _ start: Int, _ dtype: String) throws -> [Double] {
    func read(_ size: Int, _ convert: (UInt64) -> Double) -> [Double] {
        stride(from: start, to: bytes.count - size + 1, by: size).map {
            convert(littleEndian(bytes, $0, size))
        }
    }
    switch dtype {
    case "<f2": return read(2) { halfPrecision($0) }
    case "<f4": return read(4) { Double(Float(bitPattern: UInt32($0))) }
    case "<f8": return read(8) { Double(bitPattern: $0) }
    case "<i4": return read(4) { Double(Int32(bitPattern: UInt32($0))) }
    case "|i1": return read(1) { Double(Int8(bitPattern: UInt8($0))) }
    case "|u1": return read(1) { Double($0) }
    default: throw VectorError("an .npy has the dtype \(dtype), which is not read here")
    }
}

private func littleEndian(_ bytes: [UInt8], _ start: Int, _ size: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<size {
        value |= UInt64(bytes[start + index]) << UInt64(8 * index)
    }
    return value
}

/// The value of the sixteen bits of IEEE 754 half precision, for which Intel Macs have no type.
private func halfPrecision(_ bits: UInt64) -> Double {
    let sign = bits >> 15 == 0 ? 1.0 : -1.0
    let exponent = Int(bits >> 10 & 31)
    let fraction = Double(bits & 1023)
    switch exponent {
    case 0: return sign * fraction * pow(2, -24)
    case 31: return fraction == 0 ? sign * Double.infinity : Double.nan
    default: return sign * (1024 + fraction) * pow(2, Double(exponent - 25))
    }
}

private func between(_ text: String, _ before: String, _ after: String) -> String? {
    guard let start = text.range(of: before)?.upperBound,
        let end = text.range(of: after, range: start..<text.endIndex)?.lowerBound
    else { return nil }
    return String(text[start..<end])
}
