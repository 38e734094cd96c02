package org.junit;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;

/** Runs the tests of a class; there must be one. */
public final class RunTest {
    public static void main(String[] names) throws Throwable {
        Class<?> tests = Class.forName(names[0]);
        int count = 0;
        for (Method method : tests.getMethods()) {
            if (method.isAnnotationPresent(Test.class)) {
                count++;
                try {
                    method.invoke(tests.getConstructor().newInstance());
                } catch (InvocationTargetException error) {
                    throw error.getCause();
                }
            }
        }
        Assert.assertTrue("tests", count == 1);
    }

    private RunTest() {}
}
