package com.example.digits;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;

/** Arrays of float32 in an .npz: a zip archive of .npy files (numpy.lib.format). */
final class Npz {
    private static final Pattern HEADER = Pattern.compile(
            "\\{'descr': '<f4', 'fortran_order': False, 'shape': \\(([\\d, ]*)\\), \\}\\s*");

    static final class Array {
        final long[] shape;
        final float[] values;

        Array(long[] shape, float[] values) {
            this.shape = shape;
            this.values = values;
        }
    }

    static Map<String, Array> read(InputStream stream) throws IOException {
        Map<String, Array> arrays = new HashMap<>();
        try (ZipInputStream archive = new ZipInputStream(stream)) {
            for (ZipEntry entry; (entry = archive.getNextEntry()) != null; ) {
                String name = entry.getName().replaceFirst("\\.npy$", "");
                arrays.put(name, array(name, bytes(archive)));
            }
        }
        return arrays;
    }

    static byte[] bytes(InputStream stream) throws IOException {
        ByteArrayOutputStream found = new ByteArrayOutputStream();
        byte[] part = new byte[1 << 16];
        for (int size; (size = stream.read(part)) > 0; ) {
            found.write(part, 0, size);
        }
        return found.toByteArray();
    }

    private static Array array(String name, byte[] npy) throws IOException {
        ByteBuffer data = ByteBuffer.wrap(npy).order(ByteOrder.LITTLE_ENDIAN);
        int start = 10 + data.getShort(8);
        Matcher header = HEADER.matcher(new String(npy, 10, start - 10, StandardCharsets.US_ASCII));
        if (!header.matches()) {
            throw new IOException(name + " is no array of float32 in rows");
        }
        long[] shape = Arrays.stream(header.group(1).split(","))
                .map(String::trim).filter(size -> !size.isEmpty()).mapToLong(Long::parseLong).toArray();
        data.position(start);
        float[] values = new float[data.remaining() / Float.BYTES];
        data.asFloatBuffer().get(values);
        return new Array(shape, values);
    }

    private Npz() {}
}
