package org.junit;

public final class Assert {
    public static void assertTrue(String message, boolean condition) {
        if (!condition) {
            throw new AssertionError(message);
        }
    }

    public static void assertEquals(String message, long expected, long actual) {
        assertTrue(message + ": " + actual + ", not " + expected, expected == actual);
    }

    private Assert() {}
}
