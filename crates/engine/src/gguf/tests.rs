use proptest::prelude::*;

use super::*;

/// Writes a small file, piece by piece.
#[derive(Default, Clone)]
struct Writer(Vec<u8>);

impl Writer {
    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let mut next = self.u64(text.len() as u64);
        next.0.extend(text.as_bytes());
        next
    }

    fn key(self, key: &str, text: &str) -> Self {
        self.text(key).u32(8).text(text)
    }

    fn tensor(self, name: &str, row: u64, kind: u32, offset: u64) -> Self {
        self.text(name).u32(2).u64(row).u64(2).u32(kind).u64(offset)
    }
}

fn begin(tensors: u64, keys: u64) -> Writer {
    let mut writer = Writer::default();
    writer.0.extend(b"GGUF");
    writer.u32(3).u64(tensors).u64(keys)
}

fn model() -> Writer {
    begin(2, 5)
        .key("general.architecture", "llama")
        .key("general.name", "Tiny")
        .text("llama.context_length")
        .u32(4)
        .u32(2_048)
        .text("tokenizer.ggml.tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("b")
        .key("tokenizer.chat_template", "{{ messages }}")
        .tensor("one", 64, 2, 0)
        .tensor("two", 4, 0, 96)
}

/// With room for both tensors behind it.
fn whole(writer: Writer) -> Vec<u8> {
    let mut bytes = writer.0;
    bytes.resize(bytes.len().next_multiple_of(32) + 128, 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<ModelHeader, String> {
    read_header(bytes, bytes.len() as u64).map_err(|error| error.to_string())
}

#[test]
fn a_model_says_what_it_is() {
    let header = read(&whole(model())).unwrap();
    assert_eq!((header.architecture.as_str(), header.name.as_deref()), ("llama", Some("Tiny")));
    assert_eq!((header.parameters, header.context, header.vocabulary), (136, 2_048, 2));
    assert_eq!((header.quantisation.as_str(), header.template, header.tensors), ("Q4_0", true, 2));
}

#[test]
fn what_a_token_takes_follows_from_layers_and_heads() {
    let with = |keys: &[(&str, u32)]| {
        let mut writer = begin(0, 2 + keys.len() as u64).key("general.architecture", "llama");
        for (key, value) in keys {
            writer = writer.text(&format!("llama.{key}")).u32(4).u32(*value);
        }
        let writer = writer.text("tokenizer.ggml.tokens").u32(9).u32(8).u64(1).text("a");
        read(&whole(writer)).unwrap().token_bytes
    };
    let heads = [("block_count", 30), ("attention.head_count", 9), ("embedding_length", 576)];
    assert_eq!(with(&heads), 30 * 9 * 64 * 2 * 2);
    assert_eq!(with(&[&heads[..], &[("attention.head_count_kv", 3)]].concat()), 23_040);
    let long = [("attention.key_length", 128), ("attention.value_length", 96)];
    assert_eq!(with(&[&heads[..], &long].concat()), 30 * 9 * (128 + 96) * 2);
    // Nothing, or nonsense.
    assert_eq!(with(&heads[..2]), 0);
    assert_eq!(with(&[("block_count", u32::MAX), ("attention.head_count", 0), ("embedding_length", 1)]), 0);
    let most = ["block_count", "attention.head_count", "attention.key_length", "attention.value_length"];
    assert_eq!(with(&most.map(|key| (key, u32::MAX))), 0);
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    for (bytes, wanted) in [
        (b"GGML".to_vec(), "it is not a GGUF file"),
        (Vec::new(), "it ends within its header"),
        ([&b"GGUF"[..], &[9, 0, 0, 0]].concat(), "it is GGUF of version 9; versions 2 and 3 are read"),
        (begin(u64::MAX, 0).0, "its header is too long"),
        (begin(0, u64::MAX).0, "its header is too long"),
        (begin(0, 1).u64(u64::MAX).0, "it is malformed: a text is too long"),
        (begin(0, 1).text("k").u32(77).0, "it is malformed: a value has an unknown type"),
        (begin(0, 1).text("k").u32(9).u32(9).u64(1).0, "it is malformed: an array has arrays"),
        (begin(0, 1).text("k").u32(9).u32(8).u64(1).text(&"t".repeat(2_049)).0, "it is malformed: a token is too long"),
        (begin(0, 1).text("k").u32(9).u32(0).u64(u64::MAX).0, "its header is too long"),
        (begin(0, 1).text("k").u32(9).u32(0).u64(99).0, "it ends within its header"),
        (begin(0, 2).key("k", "a").key("k", "b").0, "it is malformed: a key is there twice"),
        (begin(0, 0).0, "it is malformed: general.architecture is missing"),
        (begin(0, 1).key("general.architecture", "llama").0, "it is malformed: it has no vocabulary"),
        (begin(1, 0).text("t").u32(5).0, "tensor t: it must have 1 to 4 dimensions"),
        (begin(1, 0).text("t").u32(1).u64(0).0, "tensor t: a dimension is empty or beyond all bounds"),
        (begin(1, 0).text("t").u32(2).u64(1 << 40).u64(1 << 40).0, "tensor t: it is beyond all bounds"),
        (begin(1, 0).tensor("t", 64, 4, 0).0, "tensor t: its type is unknown"),
        (begin(1, 0).tensor("t", 33, 2, 0).0, "tensor t: its rows are no whole blocks of its type"),
        (begin(1, 0).tensor("t", 32, 2, 1).0, "tensor t: its place is not aligned"),
        (begin(1, 0).tensor("t", 32, 2, u64::MAX - 31).0, "tensor t: it is beyond the end of the file"),
        (begin(1, 0).tensor("t", 32, 2, 0).0, "tensor t: it is beyond the end of the file"),
        (begin(2, 0).tensor("t", 32, 2, 0).tensor("t", 32, 2, 0).0, "tensor t: its name is there twice"),
        (begin(0, 1).key("general.alignment", "x").0, "it is malformed: general.alignment is no power of two"),
    ] {
        assert_eq!(read(&bytes).unwrap_err(), wanted);
    }
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused() {
    let bytes = whole(model());
    // The last tensor ends where the file does.
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn no_damage_makes_the_reader_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = whole(model());
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(bytes);
        let _ = read(&file);
    }
}
