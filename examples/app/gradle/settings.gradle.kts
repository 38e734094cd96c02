pluginManagement {
    repositories { google(); mavenCentral() }
}
dependencyResolutionManagement {
    repositories { google(); mavenCentral() }
}
rootProject.name = "app"
include(":digits")
