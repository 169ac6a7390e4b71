//! wudao-comm
