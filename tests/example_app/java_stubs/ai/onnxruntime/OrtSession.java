package ai.onnxruntime;

import java.io.DataInputStream;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;

/** Gives the answers in the file that the property names: first the input that it expects, then the output. */
public class OrtSession implements AutoCloseable {
    public static class SessionOptions implements AutoCloseable {
        final Map<String, String> entries = new TreeMap<>();

        public void addConfigEntry(String key, String value) throws OrtException {
            entries.put(key, value);
        }

        @Override
        public void close() {}
    }

    public static class Result implements AutoCloseable {
        private final OnnxValue value;

        Result(OnnxValue value) {
            this.value = value;
        }

        public OnnxValue get(int index) {
            return value;
        }

        @Override
        public void close() {}
    }

    public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
        Map.Entry<String, ? extends OnnxTensorLike> input = inputs.entrySet().iterator().next();
        OnnxTensor given = (OnnxTensor) input.getValue();
        String sizes = Arrays.stream(given.shape).mapToObj(Long::toString).collect(Collectors.joining(","));
        System.out.println(input.getKey() + "[" + sizes + "]");
        try (DataInputStream answers =
                new DataInputStream(Files.newInputStream(Paths.get(System.getProperty("answers"))))) {
            for (int k = 0; k < given.data.remaining(); k++) {
                if (answers.readFloat() != given.data.get(k)) {
                    throw new IllegalStateException("input " + k + " is another one");
                }
            }
            FloatBuffer output = FloatBuffer.allocate(answers.available() / Float.BYTES);
            while (output.hasRemaining()) {
                output.put(answers.readFloat());
            }
            return new Result(new OnnxTensor((FloatBuffer) output.rewind(), new long[0]));
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    @Override
    public void close() throws OrtException {}
}
