//! Lines of bounded length from a stream that may send anything.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// One line, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Without its newline.
    Whole(Vec<u8>),
    /// The line is longer than the bound; the rest of the stream cannot be told apart any more.
    TooLong,
    /// The stream ended, cleanly or in the middle of a line.
    End,
}

/// Reads one line of at most `bound` bytes, the newline included.
pub(crate) async fn read_line<R: AsyncBufRead + Unpin>(reader: &mut R, bound: usize) -> std::io::Result<Line> {
    let mut line = Vec::new();
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok(Line::End);
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let take = end.unwrap_or(chunk.len());
        if line.len() + take >= bound {
            return Ok(Line::TooLong);
        }
        line.extend_from_slice(&chunk[..take]);
        reader.consume(end.map_or(take, |end| end + 1));
        if end.is_some() {
            return Ok(Line::Whole(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_newlines_and_never_grow_past_the_bound() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = tokio::io::BufReader::with_capacity(3, &b"ab\n\nabcdefg\nabcdefgh\n"[..]);
            assert_eq!(read_line(&mut reader, 8).await.unwrap(), Line::Whole(b"ab".to_vec()));
            assert_eq!(read_line(&mut reader, 8).await.unwrap(), Line::Whole(Vec::new()));
            assert_eq!(read_line(&mut reader, 8).await.unwrap(), Line::Whole(b"abcdefg".to_vec()));
            assert_eq!(read_line(&mut reader, 8).await.unwrap(), Line::TooLong);
            let mut torn = &b"ab"[..];
            assert_eq!(read_line(&mut torn, 8).await.unwrap(), Line::End);
        });
    }
}
