//! wudao-infer
