//! What each id stands for, as bytes.

use std::collections::BTreeSet;

/// The bytes of all ids, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    /// Whether the bytes of a sequence of ids are the bytes of its text (so for byte-level tokenizers).
    are_text: bool,
    /// Where each id's bytes end; an id that is not in the vocabulary has `None`.
    spans: Vec<Option<(u32, u32)>>,
    bytes: Vec<u8>,
    special: BTreeSet<u32>,
    /// The id of each single byte.
    single: Box<[Option<u32>; 256]>,
}

impl Pieces {
    /// Pieces by id; `None` where there is no such id.
    pub fn new(
        are_text: bool,
        pieces: &[Option<Vec<u8>>],
        special: BTreeSet<u32>,
        single: Box<[Option<u32>; 256]>,
    ) -> Pieces {
        let mut bytes = Vec::new();
        let spans = pieces
            .iter()
            .map(|piece| {
                let start = bytes.len() as u32;
                bytes.extend_from_slice(piece.as_ref()?);
                Some((start, bytes.len() as u32))
            })
            .collect();
        Pieces { are_text, spans, bytes, special, single }
    }

    pub fn are_text(&self) -> bool {
        self.are_text
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn get(&self, id: u32) -> Option<&[u8]> {
        let (start, end) = (*self.spans.get(id as usize)?)?;
        Some(&self.bytes[start as usize..end as usize])
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    pub fn special(&self) -> impl Iterator<Item = u32> {
        self.special.iter().copied()
    }

    pub fn byte(&self, byte: u8) -> Option<u32> {
        self.single[usize::from(byte)]
    }
}

/// The printable character that stands for a byte in the vocabulary of a byte-level tokenizer (GPT-2's table): printable
/// Latin-1 stands for itself, the other 68 bytes for U+0100 and on.
pub(super) fn byte_to_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that each character below U+0144 stands for.
pub(super) fn char_to_byte() -> [Option<u8>; 0x144] {
    let mut table = [None; 0x144];
    for byte in 0..=255 {
        table[byte_to_char(byte) as usize] = Some(byte);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_characters_are_those_of_the_crate() {
        let ours: BTreeSet<char> = (0..=255).map(byte_to_char).collect();
        let theirs: BTreeSet<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        assert_eq!(ours, theirs);
        assert_eq!((byte_to_char(b' '), byte_to_char(b'\n'), byte_to_char(0xad)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(char_to_byte()['Ġ' as usize], Some(b' '));
    }
}
