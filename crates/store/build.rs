//! New migrations are new inputs of `sqlx::migrate!`.
fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
