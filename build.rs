//! Compiles `proto/` without `protoc`.
//!
//! One change is made on the way: a field of type `Value` becomes `bytes`. Both are length-delimited, so
//! the wire does not change, but a document can then be read lazily, by our own reader, which bounds depth
//! itself (64 nested maps are 192 nested messages, more than prost's fixed limit of 100).

use prost_types::field_descriptor_proto::Type;

/// Messages of the document itself: read and written by `codec/value.rs`, so no code is generated.
const DOCUMENT: [&str; 4] = ["Value", "List", "Map", "Entry"];

fn main() {
    println!("cargo:rerun-if-changed=proto");
    let files = ["datastore/v1/datastore.proto", "datastore/v1/stored.proto", "riak/riak.proto"];
    let mut set = protox::compile(files, ["proto"]).expect("the .proto files of this package compile");
    for file in &mut set.file {
        // Comments are kept by position, and positions change below.
        file.source_code_info = None;
        file.message_type.retain(|message| !DOCUMENT.contains(&message.name()));
        for field in file.message_type.iter_mut().flat_map(|message| &mut message.field) {
            if field.type_name() == ".datastore.v1.Value" {
                field.set_type(Type::Bytes);
                field.type_name = None;
            }
        }
    }
    prost_build::Config::new()
        .bytes(["."])
        .compile_fds(set)
        .expect("the generated code can be written to OUT_DIR");
}
