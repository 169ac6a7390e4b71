//! wudao-data
