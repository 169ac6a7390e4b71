//! wudao-device
