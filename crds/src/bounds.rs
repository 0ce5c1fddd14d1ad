//! Integers that fit their Rust type.
//!
//! An API server knows the formats `int32` and `int64` and ignores all others, so that `uint32` alone lets a client store
//! 4294967296, after which nobody can decode the object any more. Every integer therefore gets its bounds spelt out, and a
//! format that is enforced.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// The largest integer in any object: what every JSON parser holds exactly (RFC 8259, section 6), also as a bound of a schema,
/// which is a floating-point number.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Bounds every integer of the definition.
pub(crate) fn bound_integers(crd: &mut CustomResourceDefinition) {
    let schemas = crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()).for_each(bound);
}

fn bound(schema: &mut JSONSchemaProps) {
    if schema.type_.as_deref() == Some("integer")
        && let Some((format, least, most)) = schema.format.as_deref().and_then(limits)
    {
        schema.format = Some(format.into());
        schema.minimum = Some(schema.minimum.map_or(least, |stated| stated.max(least)));
        schema.maximum = Some(schema.maximum.map_or(most, |stated| stated.min(most)));
    }
    schema.properties.iter_mut().flat_map(|fields| fields.values_mut()).for_each(bound);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => bound(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(bound),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        bound(values);
    }
    let nested = [&mut schema.all_of, &mut schema.any_of, &mut schema.one_of];
    nested.into_iter().flat_map(|list| list.iter_mut().flatten()).for_each(bound);
}

/// What stands for a Rust integer: an enforced format, the least and the greatest value.
fn limits(format: &str) -> Option<(&'static str, f64, f64)> {
    let most = MAX_INTEGER as f64;
    Some(match format {
        "uint8" => ("int32", 0.0, u8::MAX.into()),
        "uint16" => ("int32", 0.0, u16::MAX.into()),
        "uint32" => ("int64", 0.0, u32::MAX.into()),
        "uint" | "uint64" => ("int64", 0.0, most),
        "int32" => ("int32", i32::MIN.into(), i32::MAX.into()),
        "int" | "int64" => ("int64", -most, most),
        _ => return None,
    })
}
