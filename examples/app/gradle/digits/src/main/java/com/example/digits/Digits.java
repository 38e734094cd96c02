package com.example.digits;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.util.Collections;

/** Reads digits. In an app the model is {@code context.getAssets().open("model.onnx")}. */
public final class Digits implements AutoCloseable {
    private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
    private final OrtSession session;

    public Digits(byte[] model) throws OrtException {
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            for (String[] option : BuildConfig.SESSION_OPTIONS) {
                options.addConfigEntry(option[0], option[1]);
            }
            session = environment.createSession(model, options);
        }
    }

    /** Returns ten scores for each image; the shape is [images, 1, 8, 8]. */
    public float[] scores(FloatBuffer images, long[] shape) throws OrtException {
        try (OnnxTensor input = OnnxTensor.createTensor(environment, images, shape);
                OrtSession.Result found = session.run(Collections.singletonMap("image", input))) {
            return ((OnnxTensor) found.get(0)).getFloatBuffer().array();
        }
    }

    @Override
    public void close() throws OrtException {
        session.close();
    }
}
