//! wudao-train
