package ai.onnxruntime;

public final class OrtEnvironment {
    public static OrtEnvironment getEnvironment() {
        return new OrtEnvironment();
    }

    public OrtSession createSession(byte[] model, OrtSession.SessionOptions options) throws OrtException {
        if (model.length == 0) {
            throw new OrtException();
        }
        options.entries.forEach((key, value) -> System.out.println(key + "=" + value));
        return new OrtSession();
    }
}
