package ai.onnxruntime;

import java.nio.FloatBuffer;

public class OnnxTensor extends OnnxTensorLike {
    final FloatBuffer data;
    final long[] shape;

    OnnxTensor(FloatBuffer data, long[] shape) {
        this.data = data;
        this.shape = shape;
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape)
            throws OrtException {
        return new OnnxTensor(data, shape);
    }

    public FloatBuffer getFloatBuffer() {
        return data;
    }

    @Override
    public void close() {}
}
