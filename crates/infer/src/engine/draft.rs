//! Guesses the next tokens from the text itself (prompt lookup; Saxena 2023): what followed the last time these tokens came.
//!
//! A guess costs rows in a step that reads the weights anyway, and is kept as long as the sampler draws the same tokens.
//! That is rejection sampling exactly: a guess is certain of its token, so accepting it with the model's probability, and
//! else drawing from the rest, is drawing from the model and looking whether it is the guess (Leviathan et al. 2023). The
//! random stream goes on as without guesses, so the text has the same bits too.

/// Tokens that must have come before, at most and at least.
const MATCH: [usize; 2] = [4, 2];

/// At most `most` tokens that may follow `ids`.
pub(super) fn guess(ids: &[u32], most: usize) -> &[u32] {
    if most == 0 {
        return &[];
    }
    for n in (MATCH[1]..=MATCH[0]).rev().filter(|&n| n < ids.len()) {
        let last = &ids[ids.len() - n..];
        // The latest one: texts stay with their subject.
        if let Some(at) = ids[..ids.len() - 1].windows(n).rposition(|w| w == last) {
            let follows = &ids[at + n..];
            return &follows[..follows.len().min(most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_last_time_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 3), [4, 8, 1]);
        assert_eq!(guess(&[5, 1, 2, 3, 6, 1, 2, 3], 2), [6, 1]);
        // A longer match comes first.
        assert_eq!(guess(&[1, 2, 3, 4, 7, 9, 3, 4, 8, 1, 2, 3, 4], 1), [7]);
        assert_eq!(guess(&[1, 1, 1, 1], 5), [1]);
        assert_eq!(guess(&[1, 2, 3], 5), [0u32; 0]);
        assert_eq!(guess(&[1, 2, 1, 2], 0), [0u32; 0]);
        assert_eq!(guess(&[], 4), [0u32; 0]);
    }
}
