//! How the program is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let has = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v.split(',').any(|one| one == value));
    let is_static = has("CARGO_CFG_TARGET_FEATURE", "crt-static") && has("CARGO_CFG_TARGET_ENV", "gnu");
    if is_static && has("CARGO_CFG_TARGET_OS", "linux") {
        // A program that can be loaded anywhere has a list of every address in it, which is read from one end to the other at each
        // start and stays in memory: a megabyte, or a hundredth of that when it is packed (glibc has it since 2.36).
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
