//! Protobuf by hand: fields in the order of the wire, so that nothing of the crate judges itself.

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of a message with their numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fields(pub(crate) Vec<(u32, Field)>);

impl Fields {
    /// Reads a message; `None` for one that is cut off or has another wire type than these two.
    pub(crate) fn read(mut bytes: &[u8]) -> Option<Fields> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0)?;
            let field = match tag & 7 {
                0 => Field::Number(varint(&mut bytes)?),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (value, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    Field::Bytes(value.to_vec())
                }
                _ => return None,
            };
            fields.push((number, field));
        }
        Some(Fields(fields))
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, field) in &self.0 {
            match field {
                Field::Number(value) => {
                    put_varint(&mut bytes, u64::from(*number) << 3);
                    put_varint(&mut bytes, *value);
                }
                Field::Bytes(value) => {
                    put_varint(&mut bytes, u64::from(*number) << 3 | 2);
                    put_varint(&mut bytes, value.len() as u64);
                    bytes.extend_from_slice(value);
                }
            }
        }
        bytes
    }

    /// The last field of a number that holds bytes.
    pub(crate) fn bytes(&self, number: u32) -> Option<&[u8]> {
        self.all(number).last()
    }

    /// All of them.
    pub(crate) fn all(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter_map(move |(at, field)| match field {
            Field::Bytes(value) if *at == number => Some(&value[..]),
            _ => None,
        })
    }

    pub(crate) fn number(&self, number: u32) -> Option<u64> {
        let found = self.0.iter().rev().find(|(at, _)| *at == number)?;
        if let Field::Number(value) = found.1 { Some(value) } else { None }
    }

    pub(crate) fn flag(&self, number: u32) -> Option<bool> {
        self.number(number).map(|value| value != 0)
    }

    #[must_use]
    pub(crate) fn with(mut self, number: u32, value: impl AsRef<[u8]>) -> Fields {
        self.0.push((number, Field::Bytes(value.as_ref().to_vec())));
        self
    }

    #[must_use]
    pub(crate) fn with_number(mut self, number: u32, value: u64) -> Fields {
        self.0.push((number, Field::Number(value)));
        self
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
