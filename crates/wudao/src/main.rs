//! wudao
fn main() {}
