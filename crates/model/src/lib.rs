//! wudao-model
