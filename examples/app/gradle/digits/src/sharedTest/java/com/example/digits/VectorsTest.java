package com.example.digits;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.io.IOException;
import java.io.InputStream;
import java.nio.FloatBuffer;
import org.junit.Test;

/** The bundle's vectors: outputs must be as near to the expected ones as the manifest asks. */
public final class VectorsTest {
    @Test
    public void outputsAreAsNearAsTheManifestAsks() throws Exception {
        Npz.Array input = Npz.read(open("vectors/inputs.npz")).get("image");
        Npz.Array expected = Npz.read(open("vectors/outputs.npz")).get("output");
        try (Digits digits = new Digits(Npz.bytes(open("model.onnx")))) {
            float[] found = digits.scores(FloatBuffer.wrap(input.values), input.shape);
            assertEquals("numbers", expected.values.length, found.length);
            double sqnr = sqnr(expected.values, found);
            assertTrue(sqnr + " dB", sqnr >= BuildConfig.VECTORS_MIN_SQNR_DB);
        }
    }

    /** Power of the expected values over that of the difference, in dB; NaN, which fails, if one is not finite. */
    private static double sqnr(float[] expected, float[] found) {
        double power = 0, error = 0;
        for (int k = 0; k < expected.length; k++) {
            double difference = (double) found[k] - expected[k];
            power += (double) expected[k] * expected[k];
            error += difference * difference;
        }
        return error == 0 ? Double.POSITIVE_INFINITY : 10 * Math.log10(power / error);
    }

    private static InputStream open(String file) throws IOException {
        InputStream stream = VectorsTest.class.getClassLoader().getResourceAsStream(file);
        if (stream == null) {
            throw new IOException(file + " is not among the test's resources");
        }
        return stream;
    }
}
