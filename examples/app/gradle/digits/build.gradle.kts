// The model as an Android library: `implementation(project(":digits"))` in the app.
//   gradle :digits:testDebugUnitTest           the vectors in ONNX Runtime on this machine
//   gradle :digits:connectedDebugAndroidTest   the same on the phone
import groovy.json.JsonSlurper

plugins { id("com.android.library") version "8.7.3" }

val onnxRuntime = "1.24.2" // no older than `engine.minimum` of the manifest
val bundle = rootDir.resolve("../build/digits-pixel-8.qc")
val manifest = JsonSlurper().parse(bundle.resolve("manifest.json")) as Map<*, *>
val engine = manifest["engine"] as Map<*, *>
val parity = manifest["parity"] as Map<*, *>
val sessionOptions = (engine["options"] as Map<*, *>).map { (key, value) -> "{\"$key\", \"$value\"}" }

val assets = layout.buildDirectory.dir("assets")
val copyModel by tasks.registering(Sync::class) {
    from(bundle) { include("model.onnx") }
    into(assets)
}
tasks.named("preBuild") { dependsOn(copyModel) }

android {
    namespace = "com.example.digits"
    compileSdk = 35
    buildFeatures { buildConfig = true }
    defaultConfig {
        minSdk = 24
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        buildConfigField("String[][]", "SESSION_OPTIONS", sessionOptions.joinToString(", ", "{", "}"))
        buildConfigField("double", "VECTORS_MIN_SQNR_DB", "${parity["vectors_min_sqnr_db"]}")
    }
    sourceSets {
        getByName("main").assets.srcDir(assets)
        for (name in listOf("test", "androidTest")) {
            getByName(name).java.srcDir("src/sharedTest/java")
            getByName(name).resources.srcDir(bundle)
        }
    }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:$onnxRuntime")
    testImplementation("com.microsoft.onnxruntime:onnxruntime:$onnxRuntime")
    testImplementation("junit:junit:4.13.2")
    androidTestImplementation("androidx.test:runner:1.6.2")
}

// The same classes, with libraries for phones: tests on this machine take those for the JVM.
configurations.configureEach {
    if (name.endsWith("UnitTestRuntimeClasspath")) exclude(module = "onnxruntime-android")
}
